"""Every tree of small networks, lowered, against their definition: values and gradients."""

import random

import pytest
import torch
from torch.fx import Graph, GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from ce_fx.algebra import Expression, Factor, Index, Tap, Term, Window
from ce_fx.lower.emit import WAYS, emit
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import Plan
from ce_fx.plan.tree import splits_of, step_of
from ce_fx.plan.ways import ways_of
from tests.evaluate import evaluate

B, S, T, R, G = Index("b", 2), Index("s", 3), Index("t", 4), Index("r", 2), Index("g", 2)


def axes(*indices):
    """One axis for each index."""
    return tuple((i,) if isinstance(i, Index) else tuple(i) for i in indices)


def lower(term, output, tree, operands=(), ways=None, channels_last=False):
    """The product as a module; its graph is well-formed and calls public torch functions and tensor methods only."""
    network = Network(term, output, operands)
    graph = Graph()
    leaves = [graph.placeholder(f"x{n}") for n in range(network.n)]
    graph.output(emit(Plan(network, tree, "written", 0, 0, 0.0, ways or {}, channels_last), graph, leaves))
    graph.lint()
    for node in graph.nodes:
        assert node.op in ("placeholder", "output", "call_function", "call_method")
        if node.op == "call_function":
            assert "ops" not in str(node.target)
    return GraphModule(torch.nn.Module(), graph)


def trees(operands):
    """All binary trees over operands, mirror images aside."""
    if len(operands) == 1:
        yield operands[0]
        return
    first, rest = operands[0], operands[1:]
    for mask in range(2 ** len(rest) - 1):
        left = [first, *(x for n, x in enumerate(rest) if mask >> n & 1)]
        right = [x for x in operands if x not in left]
        yield from ((a, b) for a in trees(left) for b in trees(right))


def random_leaves(term, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [[torch.Size([i.size for i in axis]).numel() for axis in factor.axes] for factor in term.factors]
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


def check(term, output, tree, operands=(), seed=0, ways=None, channels_last=False):
    """Equal values and gradients to the definition."""
    leaves = random_leaves(term, seed)
    expected = evaluate(Expression(output, (term,)), dict(enumerate(leaves)))
    got = lower(term, output, tree, operands, ways, channels_last)(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(seed + 1))
    wanted = torch.autograd.grad(expected, leaves, cotangent, allow_unused=True, materialize_grads=True)
    grads = torch.autograd.grad(got, leaves, cotangent, allow_unused=True, materialize_grads=True)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)


def random_network(rng):
    """A term of 2 to 4 operands with ordinary indices anywhere and up to 4 windows, and its output."""
    n = rng.choice((2, 3, 3, 4))
    held = [[] for _ in range(n)]
    ordinary = [Index(name, rng.randint(1, 3)) for name in "abcde"[: rng.randint(1, 5)]]
    for index in ordinary:
        for operand in rng.sample(range(n), rng.randint(1, n)):
            held[operand].append((index,))
    windows = [_random_window(rng, f"h{number}", held) for number in range(rng.choice((0, 1, 1, 2, 2, 3, 4)))]
    for operand in held:
        rng.shuffle(operand)
        if len(operand) > 1 and rng.random() < 0.2:
            operand[:2] = [operand[0] + operand[1]]
    factors = tuple(Factor(number, tuple(a)) for number, a in enumerate(held))
    used = [i for i in ordinary if any(i in f.indices for f in factors) and rng.random() < 0.6]
    output = [(i,) for i in (*used, *(w.out for w in windows))]
    rng.shuffle(output)
    if len(output) > 1 and rng.random() < 0.3:
        output[:2] = [output[0] + output[1]]
    if rng.random() < 0.2:
        output.insert(rng.randint(0, len(output)), rng.choice(((), (Index("z", 2),))))
    return Term(factors, tuple(windows), rng.choice((1, 1, -2.5))), tuple(output)


def _random_window(rng, name, held):
    """A window over two or more operands: sliding, circular or (with one kernel) transposed."""
    operands = rng.sample(range(len(held)), rng.randint(2, min(3, len(held))))
    features = Index(f"{name}.i", rng.randint(2, 6))
    taps = tuple(Tap(Index(f"{name}.k{n}", rng.randint(1, 3)), rng.randint(1, 3)) for n in operands[1:])
    held[operands[0]].append((features,))
    for operand, tap in zip(operands[1:], taps, strict=True):
        held[operand].append((tap.index,))
    stride, pad, reach = rng.choice((1, 1, 2, 3)), rng.randint(-1, 4), sum(tap.reach for tap in taps)
    transposed = len(taps) == 1 and rng.random() < 0.25
    whole = stride * (features.size - 1) + reach + 1
    most = whole + 2 if transposed else (features.size + 2 * max(pad, 0) - reach - 1) // stride + 1
    out = Index(f"{name}.o", max(1, min(most, 8)))
    circular = not transposed and rng.random() < 0.25
    return Window(features, out, taps, stride, pad, circular, transposed)


@pytest.mark.parametrize("seed", range(120))
def test_every_tree_of_a_random_network_equals_its_definition(seed):
    term, output = random_network(random.Random(seed))
    for number, tree in enumerate(trees(list(range(len(term.factors))))):
        check(term, output, tree, seed=number)


def other_ways(network, tree):
    """For every step of a tree, its subset and the ways that are not that of its kind."""
    steps = [step_of(network, left, right) for left, right in splits_of(tree)]
    return {step.left | step.right: ways_of(step, network)[1:] for step in steps}


@pytest.mark.parametrize("seed", range(200))
def test_every_way_of_every_step_equals_its_definition(seed):
    """One step at a time is evaluated in each of its other ways, and all together in random ones."""
    rng = random.Random(seed)
    term, output = random_network(rng)
    every = list(trees(list(range(len(term.factors)))))
    for tree in rng.sample(every, min(3, len(every))):
        others = other_ways(Network(term, output), tree)
        for subset, ways in others.items():
            for way in ways:
                check(term, output, tree, seed=seed, ways={subset: way})
        check(term, output, tree, seed=seed, ways={s: rng.choice(ways) for s, ways in others.items() if ways})
        check(term, output, tree, seed=seed, channels_last=True)


def test_every_way_occurs_in_random_networks():
    seen = set()
    for seed in range(200):
        term, output = random_network(random.Random(seed))
        for tree in trees(list(range(len(term.factors)))):
            seen |= {way for ways in other_ways(Network(term, output), tree).values() for way in ways}
    assert seen == set(WAYS) - {"matmul"}


class Kernels(TorchDispatchMode):
    """Notes the ATen ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
def test_a_matrix_at_many_positions_is_not_folded(grad):
    """torch folds a plain matrix that needs a gradient into one product and two copies, recorded or not."""
    i, o, k = Index("h", 20), Index("o", 20), Index("k", 3)
    term = Term(
        (Factor(0, axes(B, S, i)), Factor(1, axes(S, R)), Factor(2, axes(R, k))), (Window(i, o, (Tap(k),), 1, 1),)
    )
    module = lower(term, axes(B, o, R), ((0, 1), 2), ways={0b011: "matmul"})
    leaves = [torch.randn(2, 3, 20), torch.randn(3, 2, requires_grad=True), torch.randn(2, 3)]
    with torch.set_grad_enabled(grad), Kernels() as kernels:
        module(*leaves)
    assert "bmm" in kernels.names and not {"mm", "clone"} & set(kernels.names[: kernels.names.index("bmm")])


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 2, 1)], ids=["positions last", "channels last"])
def test_a_matrix_at_each_position_stores_its_result_as_it_is_wished_for(places):
    """Terms of a sum that are stored in two orders take three times as long to add."""
    b, p, r = Index("b", 2), Index("p", 20), Index("r", 4)
    order = [(b, r, p)[place] for place in places]
    term = Term((Factor(0, axes(b, S, p)), Factor(1, axes(S, r))))
    check(term, axes(*order), (0, 1))
    module = lower(term, axes(*order), (0, 1))
    with Kernels() as kernels:
        result = module(torch.randn(2, S.size, 20), torch.randn(S.size, 4))
    assert result.is_contiguous() and "bmm" in kernels.names and not {"clone", "copy_", "mm"} & set(kernels.names)


def test_images_are_brought_into_channels_last_and_stay_in_it():
    h, w = (Index("h", 5), Index("oh", 5), Index("kh", 3)), (Index("w", 6), Index("ow", 6), Index("kw", 3))
    windows = tuple(Window(i, o, (Tap(k, 1),), 1, 1) for i, o, k in (h, w))
    term = Term((Factor(0, axes(B, R, h[0], w[0])), Factor(1, axes(R, h[2])), Factor(2, axes(R, w[2]))), windows)
    output = axes(B, R, h[1], w[1])
    check(term, output, ((0, 1), 2), channels_last=True)
    module = lower(term, output, ((0, 1), 2), channels_last=True)
    assert module.code.count("channels_last") == 1
    result = module(torch.randn(2, 2, 5, 6), torch.randn(2, 3), torch.randn(2, 3))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_matmul_at_many_positions_equals_its_definition():
    i, o, k = Index("h", 20), Index("o", 20), Index("k", 3)
    window = Window(i, o, (Tap(k, 1),), 1, 1)
    term = Term((Factor(0, axes(B, S, i)), Factor(1, axes(S, R)), Factor(2, axes(R, k))), (window,))
    network = Network(term, axes(B, o, R))
    assert other_ways(network, ((0, 1), 2))[0b011] == ("matmul",)
    check(term, axes(B, o, R), ((0, 1), 2), ways={0b011: "matmul"})


def conv_term(*, stride=1, pad=1, size=6, out=6, kernel=3, dilation=1, circular=False):
    """x[b, s, h] and w[t, s, k] with one window."""
    i, o, k = Index("h", size), Index("o", out), Index("k", kernel)
    window = Window(i, o, (Tap(k, dilation),), stride, pad, circular)
    return Term((Factor(0, axes(B, S, i)), Factor(1, axes(T, S, k))), (window,)), axes(B, T, o)


def code_of(term, output, tree=(0, 1)):
    """The body of the lowered module, without the deletions that FX appends."""
    lines = lower(term, output, tree).code.split("\n")
    return [line.split(";")[0].strip() for line in lines if line.strip() and not line.startswith(("def", "\n"))]


def test_a_convolution_is_one_call():
    assert code_of(*conv_term()) == ["conv1d = torch.conv1d(x0, x1, padding = 1)", "return conv1d"]


def test_stride_and_dilation_go_into_the_call():
    code = code_of(*conv_term(stride=2, pad=2, out=3, dilation=2))
    assert code == ["conv1d = torch.conv1d(x0, x1, stride = 2, padding = 2, dilation = 2)", "return conv1d"]


def test_a_negative_pad_is_a_view():
    code = code_of(*conv_term(pad=-1, out=2))
    assert code[0].startswith("narrow = torch.narrow(x0, -1, 1, ") and not any("pad" in line for line in code)


def test_one_sided_padding_is_added_before():
    assert code_of(*conv_term(pad=2, out=6))[0] == "pad = torch.nn.functional.pad(x0, [2, 0])"


def test_circular_padding_wraps():
    assert any("torch.cat" in line for line in code_of(*conv_term(circular=True)))


def test_a_matrix_product_is_one_mm():
    term = Term((Factor(0, axes(B, S)), Factor(1, axes(S, T))))
    assert code_of(term, axes(B, T)) == ["mm = torch.mm(x0, x1)", "return mm"]


def test_an_operand_that_is_stored_transposed_is_read_so():
    term = Term((Factor(0, axes(B, S)), Factor(1, axes(T, S))))
    assert code_of(term, axes(B, T)) == ["t = torch.t(x1)", "mm = torch.mm(x0, t)", "return mm"]


def test_batched_contraction_is_one_bmm():
    term = Term((Factor(0, axes(G, B, S)), Factor(1, axes(G, S, T))))
    assert code_of(term, axes(G, B, T)) == ["bmm = torch.bmm(x0, x1)", "return bmm"]


def test_nothing_summed_is_a_broadcast_multiply():
    term = Term((Factor(0, axes(R, S)), Factor(1, axes(R, T))))
    code = code_of(term, axes(R, S, T))
    assert sum("torch.mul(" in line for line in code) == 1
    assert not any(name in line for line in code for name in ("mm", "conv", "permute"))


def test_a_channel_matrix_on_features_leaves_their_positions_where_they_are():
    i, o, k = Index("h", 20), Index("o", 20), Index("k", 3)
    term = Term(
        (Factor(0, axes(B, S, i)), Factor(1, axes(R, S)), Factor(2, axes(R, k))), (Window(i, o, (Tap(k),), 1, 1),)
    )
    code = code_of(term, axes(B, R, o), ((0, 1), 2))
    calls = [line for line in code if "torch.conv1d" in line]
    assert calls[0].startswith("conv1d = torch.conv1d(x0, ") and calls[1].startswith("conv1d_1 = torch.conv1d(conv1d, ")
    assert "groups = 2" in calls[1] and not any("permute" in line for line in code)


def test_a_channel_matrix_on_a_kernel_is_one_mm():
    i, o, k = Index("h", 20), Index("o", 20), Index("k", 3)
    window = Window(i, o, (Tap(k),), 1, 1)
    term = Term((Factor(0, axes(B, S, i)), Factor(1, axes(S, k, R)), Factor(2, axes(R, T))), (window,))
    code = code_of(term, axes(B, T, o), (0, (1, 2)))
    assert sum("torch.mm(" in line for line in code) == 1 and sum("conv1d(" in line for line in code) == 1


def test_two_kernels_merge_by_a_transposed_convolution():
    i, o, k, m = Index("h", 8), Index("o", 8), Index("k", 3), Index("m", 3)
    window = Window(i, o, (Tap(k), Tap(m, 2)), 1, 3)
    term = Term((Factor(0, axes(B, S, i)), Factor(1, axes(R, S, k)), Factor(2, axes(T, R, m))), (window,))
    code = code_of(term, axes(B, T, o), (0, (1, 2)))
    assert any("torch.conv_transpose1d(" in line for line in code)
    assert not any("flip" in line for line in code)


def test_groups_are_indices_that_all_three_have():
    i, o, k = Index("h", 6), Index("o", 6), Index("k", 3)
    term = Term((Factor(0, axes(B, (G, S), i)), Factor(1, axes((G, T), S, k))), (Window(i, o, (Tap(k),), 1, 1),))
    code = code_of(term, axes(B, (G, T), o))
    assert code == ["conv1d = torch.conv1d(x0, x1, padding = 1, groups = 2)", "return conv1d"]


@pytest.mark.parametrize("count", (4, 5))
def test_more_than_three_axes_are_convolved_at_once(count):
    inner = [Index(f"i{n}", 4) for n in range(count)]
    outer = [Index(f"o{n}", 4 - n % 2) for n in range(count)]
    taps = [Tap(Index(f"k{n}", 1 + n % 3), 1 + n % 2) for n in range(count)]
    windows = tuple(Window(i, o, (tap,), 1, tap.reach // 2) for i, o, tap in zip(inner, outer, taps, strict=True))
    term = Term((Factor(0, axes(B, S, *inner)), Factor(1, axes(T, S, *(t.index for t in taps)))), windows)
    check(term, axes(B, T, *outer), (0, 1))


def test_each_side_has_features_for_the_other():
    h, w, oh, ow = Index("h", 6), Index("w", 5), Index("oh", 6), Index("ow", 5)
    kh, kw = Index("kh", 3), Index("kw", 2)
    windows = (Window(h, oh, (Tap(kh),), 1, 1), Window(w, ow, (Tap(kw),), 1, 1))
    term = Term((Factor(0, axes(B, S, h, kw)), Factor(1, axes(T, S, kh, w))), windows)
    check(term, axes(B, T, oh, ow), (0, 1))


def test_the_coefficient_multiplies_the_smallest_constant():
    term = Term((Factor(0, axes(B, S)), Factor(1, axes(S, T)), Factor(2, axes(T, R))), (), 0.5)
    operands = (Operand(), Operand(constant=True), Operand(constant=True))
    module = lower(term, axes(B, R), ((0, 1), 2), operands)
    scaled = [node for node in module.graph.nodes if node.op == "call_function" and 0.5 in node.args]
    assert [node.args[0].name for node in scaled] == ["x2"]
    check(term, axes(B, R), ((0, 1), 2), operands)


def test_diagonals_private_indices_and_broadcast_outputs():
    z = Index("z", 3)
    term = Term((Factor(0, axes(S, S, B, R)), Factor(1, axes(S, T))))
    check(term, axes(z, T, (B, z.__class__("y", 2)), ()), (0, 1))


@pytest.mark.parametrize("empty", ("b", "s", "t"))
def test_empty_sizes_give_zeros_that_carry_gradients(empty):
    b, s, t = (Index(name, 0 if name == empty else 2) for name in "bst")
    i, o, k = Index("h", 4), Index("o", 4), Index("k", 3)
    term = Term((Factor(0, axes(b, s, i)), Factor(1, axes(t, s, k))), (Window(i, o, (Tap(k),), 1, 1),))
    leaves = random_leaves(term, 0)
    got = lower(term, axes(b, t, o), (0, 1))(*leaves)
    assert got.shape == (b.size, t.size, 4) and not got.detach().any()
    for leaf, grad in zip(leaves, torch.autograd.grad(got.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


def test_a_symbolic_batch_is_no_literal():
    b = Index("b", 7, "s0")
    i, o, k = Index("h", 6), Index("o", 6), Index("k", 3)
    term = Term(
        (Factor(0, axes(b, (S, G), i)), Factor(1, axes(R, S)), Factor(2, axes(T, R, G, k))),
        (Window(i, o, (Tap(k),), 1, 1),),
    )
    for tree in trees([0, 1, 2]):
        module = lower(term, axes(b, T, o), tree)
        for size in (1, 5):
            leaves = [torch.randn(size, 6, 6), torch.randn(2, 3), torch.randn(4, 2, 2, 3)]
            kernel = torch.einsum("rs,trgk->tsgk", *leaves[1:]).flatten(1, 2)
            torch.testing.assert_close(
                module(*leaves), torch.conv1d(leaves[0], kernel, padding=1), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("first", [True, False])
def test_a_symbolic_batch_is_no_literal_in_any_way(first):
    """Images that share a kernel, the batch before or behind their channels; and channels that are summed."""
    b, i, o, k = Index("b", 7, "s0"), Index("h", 20), Index("o", 20), Index("k", 3)
    window = Window(i, o, (Tap(k),), 1, 1)
    x, order = ((b, S), "bs") if first else ((S, b), "sb")
    seen = set()
    for kernel, mixed in (((T, k), f"{order}h,tk->bst"), ((T, S, k), f"{order}h,tsk->bt")):
        term = Term((Factor(0, axes(*x, i)), Factor(1, axes(*kernel))), (window,))
        output = axes(*(letter for letter in (b, S, T) if letter.name in mixed.partition("->")[2]), o)
        network = Network(term, output)
        for subset, ways in other_ways(network, (0, 1)).items():
            seen |= set(ways)
            for way in ways:
                module = lower(term, output, (0, 1), ways={subset: way})
                for size in (1, 5):
                    features = torch.randn([size if n == b else n.size for n in (*x, i)], dtype=torch.float64)
                    weight = torch.randn([n.size for n in kernel], dtype=torch.float64)
                    windows = torch.nn.functional.pad(features, (1, 1)).unfold(-1, 3, 1)
                    expected = torch.einsum(mixed.replace("h,", "hk,") + "h", windows, weight)
                    torch.testing.assert_close(module(features, weight), expected)
    assert seen == {"grouped", "unfold", "unfold_conv", "taps", "taps_conv", "band"}


def test_an_intermediate_is_made_in_the_order_in_which_it_is_read():
    i, j, k = (Index(name, 4) for name in "ijk")
    a, b, c = (Index(name, 8) for name in "abc")
    z = Index("z", 64)
    factors = (Factor(0, axes(z, i, j, k)), Factor(1, axes(i, a)), Factor(2, axes(j, b)), Factor(3, axes(k, c)))
    code = code_of(Term(factors), axes(z, a, b, c), ((0, 3), (1, 2)))
    moved = [line for line in code if "permute" in line and any(large in line for large in ("x0", "(mm,"))]
    assert len([line for line in code if "torch.mm(" in line]) == 2 and not moved


def test_a_chain_of_matrices_is_a_chain_of_mm():
    i, j, k, m = Index("i", 9), Index("j", 3), Index("k", 9), Index("m", 3)
    term = Term((Factor(0, axes(i, j)), Factor(1, axes(j, k)), Factor(2, axes(k, m))))
    assert code_of(term, axes(i, m), (0, (1, 2))) == [
        "mm = torch.mm(x1, x2)",
        "mm_1 = torch.mm(x0, mm)",
        "return mm_1",
    ]
