"""What ce_fx raises."""


class CeFxError(Exception):
    """Base of every error that ce_fx raises on purpose."""


class ExpressionError(CeFxError, ValueError):
    """A conv_einsum string, shape or option is wrong; the message names operand, letter and sizes."""


class CaptureError(CeFxError, RuntimeError):
    """A model could not be captured as a graph; the message says what stopped it and what to do."""
