"""The decoder's own arithmetic: every site against a second implementation, masks, weights by head, permutation."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect

import pytest
import torch
from jaxtyping import TypeCheckError

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import SITES, Decoder, HeadWeights
from headdyn.models.layers import Norm, rotate
from tests.models import reference
from tests.small_models import CONFIGS, GPT2, GQA, MHA, NEOX, NOPE, SLIDING, drawn, tokens

# Measured worst cases over all seven configurations, with logits of standard deviation 1: without rotation 1.2e-14;
# with it 1.5e-6, since the tables are float32 in every dtype, as Hugging Face's are.
EXACT_ATOL, ROTARY_ATOL = 1e-12, 5e-6
F32_ATOL = 1e-5  # 6.4e-6 is the worst; the fused kernel against the explicit pattern 2.4e-6
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [2, 2, 0, 0, 0, 0, 5, 5, 5]])


def atol(config: DecoderConfig) -> float:
    return ROTARY_ATOL if config.rotary_dim else EXACT_ATOL


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("documents_BT", [None, DOCUMENTS], ids=["one document", "packed"])
@torch.no_grad()
def test_every_site_equals_the_second_implementation(config: DecoderConfig, documents_BT: torch.Tensor | None) -> None:
    decoder, x_BT = drawn(config), tokens(3, 9)
    logits, sites = reference.run(decoder, x_BT, documents_BT=documents_BT)
    trace = decoder.trace(x_BT, sites=SITES, documents_BT=documents_BT)
    assert set(trace.values) == {(site, layer) for site in SITES for layer in range(config.num_layers)}
    for key, expected in sites.items():
        torch.testing.assert_close(
            trace[key], expected, atol=atol(config), rtol=0, msg=lambda m, key=key: f"{key}: {m}"
        )
    torch.testing.assert_close(trace.logits, logits, atol=atol(config), rtol=0)
    torch.testing.assert_close(decoder.float()(x_BT, documents_BT), logits.float(), atol=F32_ATOL, rtol=0)


MUTANTS = {
    "queries zeroed": ("mha", lambda d: d.blocks[1].attention.q.weight.zero_()),
    "q-norm's gain dropped": ("gqa", lambda d: d.blocks[0].attention.q_norm.weight.fill_(1)),
    "two heads swapped": (
        "mha",
        lambda d: d.blocks[0].attention.q.weight.copy_(d.blocks[0].attention.q.weight.roll(6, 0)),
    ),
    "a bias dropped": ("neox", lambda d: d.blocks[2].attention.o.bias.zero_()),
    "positions shifted": ("gpt2", lambda d: d.positions.weight.copy_(d.positions.weight.roll(1, 0))),
}


@pytest.mark.parametrize(("name", "mutate"), MUTANTS.values(), ids=MUTANTS)
@torch.no_grad()
def test_a_wrong_model_would_show(name: str, mutate) -> None:
    decoder, x_BT = drawn(CONFIGS[name]), tokens(3, 9)
    logits, _ = reference.run(decoder, x_BT)
    mutate(decoder)
    assert (decoder(x_BT) - logits).abs().max() > 0.02  # 10,000 times the tolerance


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, F32_ATOL)], ids=["f64", "f32"]
)
@torch.no_grad()
def test_fast_path_and_trace_agree(config: DecoderConfig, dtype: torch.dtype, tolerance: float) -> None:
    decoder, x_BT = drawn(config, dtype=dtype), tokens(3, 9)
    fast = decoder(x_BT)
    assert torch.equal(decoder.trace(x_BT, sites=[site for site in SITES if site != "pattern"]).logits, fast)
    explicit = decoder.trace(x_BT, sites=("pattern",)).logits
    torch.testing.assert_close(explicit, fast, atol=tolerance, rtol=0)  # measured 5.2e-15 and 2.4e-6


@torch.no_grad()
def test_only_what_was_asked_for_is_returned() -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 5)
    trace = decoder.trace(x_BT, sites=("z", "pattern"), layers=(1,))
    assert set(trace.values) == {("z", 1), ("pattern", 1)}
    with pytest.raises(KeyError, match=r"\('z', 0\) was not traced"):
        trace["z", 0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_logits_all_last_none(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config), tokens(2, 7)
    everything = decoder.trace(x_BT).logits
    last = decoder.trace(x_BT, logits="last").logits
    assert last.shape == (2, 1, config.vocab_size)
    torch.testing.assert_close(last, everything[:, -1:], atol=1e-13, rtol=0)  # a smaller product, summed differently
    assert decoder.trace(x_BT, logits=None).logits is None


@torch.no_grad()
def test_without_logits_the_layers_behind_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 5)
    whole = decoder.trace(x_BT, sites=("z",))
    monkeypatch.setattr(decoder.blocks[2], "forward", None)  # calling it fails
    part = decoder.trace(x_BT, sites=("z",), layers=(0, 1), logits=None)
    assert torch.equal(part["z", 1], whole["z", 1])
    with pytest.raises(TypeError):
        decoder.trace(x_BT)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_restart_equals_the_full_run(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config), tokens(3, 9)
    whole = decoder.trace(x_BT, sites=SITES)
    for layer in range(config.num_layers):
        part = decoder.trace(x_BT, sites=SITES, start=(layer, whole["resid_pre", layer]))
        assert torch.equal(part.logits, whole.logits)
        assert {key[1] for key in part.values} == set(range(layer, config.num_layers))
        assert all(torch.equal(part[key], whole[key]) for key in part.values)
    behind = decoder.trace(x_BT, start=(config.num_layers, whole["resid_post", config.num_layers - 1]))
    assert torch.equal(behind.logits, whole.logits)


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MHA, GQA, NOPE, SLIDING, NEOX], ids=["mha", "gqa", "nope", "sliding", "neox"])
@torch.no_grad()
def test_packed_documents_equal_each_alone(config: DecoderConfig) -> None:
    """Rotation is relative, so a document reads the same wherever it stands."""
    decoder, x_BT = drawn(config), tokens(2, 9)
    documents_BT = torch.tensor([[0] * 4 + [1] * 5] * 2)
    packed = decoder(x_BT, documents_BT)
    alone = torch.cat([decoder(x_BT[:, :4]), decoder(x_BT[:, 4:])], dim=1)
    torch.testing.assert_close(packed, alone, atol=atol(config), rtol=0)
    assert (decoder(x_BT) - alone)[:, 4:].abs().max() > 0.1  # the mutant: no document mask
    pattern_BHQK = decoder.trace(x_BT, sites=("pattern",), documents_BT=documents_BT)["pattern", 0]
    assert pattern_BHQK[:, :, 4:, :4].eq(0).all()


@torch.no_grad()
def test_sliding_window_looks_back_that_far_and_no_further() -> None:
    decoder, x_BT = drawn(SLIDING), tokens(2, 9)
    pattern_BHQK = decoder.trace(x_BT, sites=("pattern",), layers=(0,))["pattern", 0]
    back_QK = torch.arange(9)[:, None] - torch.arange(9)
    assert pattern_BHQK[..., (back_QK >= 0) & (back_QK < 3)].gt(0).all()
    assert pattern_BHQK[..., (back_QK < 0) | (back_QK >= 3)].eq(0).all()
    unlimited = decoder.with_config(dataclasses.replace(SLIDING, sliding_window=None))
    assert torch.equal(decoder(x_BT[:, :3]), unlimited(x_BT[:, :3]))
    assert (decoder(x_BT) - unlimited(x_BT)).abs().max() > 0.1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_no_position_sees_a_later_token(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config), tokens(2, 9)
    other = x_BT.clone()
    other[:, 6:] = (other[:, 6:] + 1) % config.vocab_size
    for run in (decoder, lambda x: decoder.trace(x, sites=("pattern",)).logits):
        change = (run(x_BT) - run(other)).abs().amax(dim=(0, 2))
        assert change[:6].max() == 0
        assert change[6:].min() > 0.01


# -- weights by head --------------------------------------------------------------------------------------------------


def rms_normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def by_hand(decoder: Decoder, layer: int, weights: HeadWeights, resid_BTD: torch.Tensor) -> dict[str, torch.Tensor]:
    """q, k, v, z and attn_out of a layer from HeadWeights alone."""
    c = decoder.config
    x = resid_BTD - resid_BTD.mean(-1, keepdim=True) if weights.norm_bias_D is not None else resid_BTD
    x = x if weights.norm_gain_D is None else rms_normed(x, c.norm_eps) * weights.norm_gain_D
    x = x if weights.norm_bias_D is None else x + weights.norm_bias_D

    def project(w_XDd, bias_Xd, gain_Xd, turns: bool) -> torch.Tensor:
        y = torch.einsum("btD,XDd->btXd", x, w_XDd) + (0 if bias_Xd is None else bias_Xd)
        if gain_Xd is not None:
            normed = rms_normed(y, c.norm_eps) if c.qk_norm_over == "head" else rms_normed(y.flatten(2), c.norm_eps)
            y = normed.view_as(y) * gain_Xd
        tables = decoder.rotary(x.shape[1], 0)
        return rotate(y, *tables) if turns and tables is not None else y

    q = project(weights.q_HDd, weights.q_bias_Hd, weights.q_gain_Hd, True)
    k = project(weights.k_GDd, weights.k_bias_Gd, weights.k_gain_Gd, True)
    v = project(weights.v_GDd, weights.v_bias_Gd, None, False)
    group = torch.tensor([h * c.num_kv_heads // c.num_heads for h in range(c.num_heads)])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k[:, :, group]) / c.head_dim**0.5
    back = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    seen = (back >= 0) & (back < (c.window(layer) or x.shape[1]))
    z = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[:, :, group])
    attn_out = torch.einsum("bqhd,hdD->bqD", z, weights.o_HdD)
    attn_out = attn_out if weights.o_bias_D is None else attn_out + weights.o_bias_D
    if weights.out_gain_D is not None:
        attn_out = rms_normed(attn_out, c.norm_eps) * weights.out_gain_D
    return {"q": q, "k": k, "v": v, "z": z, "attn_out": attn_out}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_head_weights_rebuild_the_attention(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config), tokens(2, 9)
    trace = decoder.trace(x_BT, sites=SITES)
    for layer in range(config.num_layers):
        weights = decoder.head_weights(layer)
        for site, value in by_hand(decoder, layer, weights, trace["resid_pre", layer]).items():
            torch.testing.assert_close(value, trace[site, layer], atol=1e-12, rtol=0, msg=f"{site} at {layer}")
    swapped = dataclasses.replace(weights, o_HdD=weights.o_HdD.flip(0))
    wrong = by_hand(decoder, layer, swapped, trace["resid_pre", layer])["attn_out"]
    assert (wrong - trace["attn_out", layer]).abs().max() > 0.1


def test_head_weights_are_views() -> None:
    decoder = drawn(NEOX)
    weights, attention = decoder.head_weights(1), decoder.blocks[1].attention
    for view, linear in ((weights.q_HDd, attention.q), (weights.v_GDd, attention.v), (weights.o_HdD, attention.o)):
        assert view.untyped_storage().data_ptr() == linear.weight.untyped_storage().data_ptr()
    with pytest.raises(ValueError, match="layer 3 is out of range; this model's are 0 to 2"):
        decoder.head_weights(3)


# -- permuting heads (science.md section 14) --------------------------------------------------------------------------

ORDERS = {
    "identity": (0, 1, 2, 3),
    "swap": (1, 0, 2, 3),
    "within parity": (2, 1, 0, 3),
    "random": (2, 0, 3, 1),
    "reverse": (3, 2, 1, 0),
}
GROUPED_ORDERS = {
    "identity": (0, 1, 2, 3),
    "swap in a group": (1, 0, 2, 3),
    "swap of groups": (2, 3, 0, 1),
    "both": (3, 2, 0, 1),
    "reverse": (3, 2, 1, 0),
}
CASES = [
    pytest.param(CONFIGS[name], order, id=f"{name}, {kind}")
    for name, orders in (("mha", ORDERS), ("neox", ORDERS), ("gpt2", ORDERS), ("gqa", GROUPED_ORDERS))
    for kind, order in orders.items()
]


@pytest.mark.parametrize(("config", "order"), CASES)
@torch.no_grad()
def test_permuting_heads_is_an_identity_of_the_function(config: DecoderConfig, order: tuple[int, ...]) -> None:
    # Measured worst cases, all three layers permuted: 6.9e-15 in float64 and 3.2e-6 in float32; the mutant's least 1.8.
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        decoder, x_BT = drawn(config, dtype=dtype), tokens(3, 9)
        permuted = decoder
        for layer in range(config.num_layers):
            permuted = permuted.permuted(layer, order)
        assert (permuted(x_BT) - decoder(x_BT)).abs().max() <= tolerance
    one = decoder.permuted(1, order)
    moved, stayed = one.trace(x_BT, sites=("z",))["z", 1], decoder.trace(x_BT, sites=("z",))["z", 1]
    torch.testing.assert_close(moved, stayed[:, :, list(order)], atol=F32_ATOL, rtol=0)


@pytest.mark.parametrize(("config", "order"), [case for case in CASES if "identity" not in case.id])
@torch.no_grad()
def test_permuting_without_the_output_columns_is_none(config: DecoderConfig, order: tuple[int, ...]) -> None:
    decoder, x_BT = drawn(config), tokens(3, 9)
    mutant = decoder.permuted(1, order)
    mutant.blocks[1].attention.o.weight.copy_(decoder.blocks[1].attention.o.weight)
    assert (mutant(x_BT) - decoder(x_BT)).abs().max() > 0.1


@torch.no_grad()
def test_permuting_biases_matters() -> None:
    decoder, x_BT = drawn(NEOX), tokens(3, 9)
    mutant = decoder.permuted(1, (1, 0, 2, 3))
    mutant.blocks[1].attention.v.bias.copy_(decoder.blocks[1].attention.v.bias)
    assert (mutant(x_BT) - decoder(x_BT)).abs().max() > 0.1


def test_permuted_leaves_the_original_and_refuses_what_is_no_identity() -> None:
    decoder = drawn(GQA)
    before = fingerprint(decoder)
    decoder.permuted(0, (3, 2, 1, 0))
    assert fingerprint(decoder) == before
    with pytest.raises(ValueError, match=r"\[0, 2, 1, 3\] breaks key/value groups.*mixes groups \[0, 1\]"):
        decoder.permuted(0, (0, 2, 1, 3))
    for order in ((0, 1, 2), (0, 0, 1, 2), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"is not a permutation of the 4 heads 0\.\.3"):
            decoder.permuted(0, order)
    with pytest.raises(ValueError, match="layer -1 is out of range; this model's are 0 to 2"):
        decoder.permuted(-1, (0, 1, 2, 3))


# -- construction -----------------------------------------------------------------------------------------------------


def fingerprint(decoder: Decoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in decoder.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_generator_alone_decides_the_weights() -> None:
    """Also of the biases, which torch draws from its global generator when it builds a layer."""

    def build(seed: int, global_seed: int) -> str:
        torch.manual_seed(global_seed)
        decoder = Decoder(NEOX)
        state = torch.get_rng_state()
        decoder.initialise(torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
        return fingerprint(decoder)

    assert build(0, 1) == build(0, 2)
    assert build(0, 1) != build(1, 1)


def test_initial_weights_have_the_stated_spread() -> None:
    config = dataclasses.replace(NEOX, vocab_size=500, d_model=200, d_ff=400, tied_embeddings=True)
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(0))
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
        else:
            std = 0.02 / 6**0.5 if name.endswith(("attention.o.weight", "mlp.down.weight")) else 0.02
            assert abs(parameter.std().item() / std - 1) < 0.05, name  # 6,400 entries or more: about 0.9 % each


def test_with_config_shares_the_weights() -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 9)
    dropped = decoder.with_config(MHA.without_positions())
    assert dropped.config.rotary_dim == 0
    for mine, its in zip(decoder.parameters(), dropped.parameters(), strict=True):
        assert mine.data_ptr() == its.data_ptr() and its.requires_grad
    assert dropped.unembed.weight is dropped.embed.weight
    alone = Decoder(MHA.without_positions()).double()
    alone.load_state_dict(decoder.state_dict())
    assert torch.equal(dropped(x_BT), alone(x_BT))
    assert (dropped(x_BT) - decoder(x_BT)).abs().max() > 0.1
    assert torch.equal(dropped.with_config(MHA)(x_BT), decoder(x_BT))
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.attention\.k\.weight"):
        decoder.with_config(GQA)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_autocast_and_narrow_dtypes(config: DecoderConfig) -> None:
    """bfloat16 keeps 8 bits: over three layers logits of standard deviation 1 move by 0.02 to 0.18 (measured)."""
    decoder, x_BT = drawn(config, dtype=torch.float32), tokens(3, 9)
    exact = decoder(x_BT)
    with torch.autocast("cpu", torch.bfloat16):
        trace = decoder.trace(x_BT, sites=("z", "v"))
        assert torch.equal(decoder(x_BT), trace.logits)
    assert trace["v", 0].dtype == torch.bfloat16
    assert trace["z", 0].dtype == torch.bfloat16
    assert 0 < (trace.logits - exact).abs().max() < 0.5
    narrow = copy.deepcopy(decoder).to(torch.bfloat16)(x_BT)
    assert narrow.dtype == torch.bfloat16
    assert 0 < (narrow - exact).abs().max() < 0.5


def test_a_norm_of_bfloat16_rounds_once() -> None:
    """What it is in float64, rounded to bfloat16; its squares and their mean in bfloat16 would round thrice."""
    norm = Norm(64, "rms", 1e-6)
    x_BD = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact_BD = torch.nn.functional.rms_norm(x_BD.double(), (64,), eps=1e-6)
    assert (norm.to(torch.bfloat16)(x_BD) == exact_BD.bfloat16()).float().mean() > 0.999


@pytest.mark.parametrize("config", [MHA, GQA, NEOX, GPT2], ids=["mha", "gqa", "neox", "gpt2"])
@torch.no_grad()
def test_the_fast_path_compiles_into_one_graph(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config, dtype=torch.float32), tokens(3, 9)
    compiled = torch.compile(decoder, dynamic=False, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x_BT), decoder(x_BT))


# -- errors -----------------------------------------------------------------------------------------------------------


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads=4 is not a multiple of num_kv_heads=3; .* one of \[1, 2, 4\]"):
        dataclasses.replace(MHA, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"rotary width 7 \(of head_dim=7\) is odd"):
        dataclasses.replace(MHA, head_dim=7)
    assert dataclasses.replace(MHA, head_dim=7, rotary_fraction=0.0).rotary_dim == 0
    with pytest.raises(ValueError, match="2 rotary_frequencies turn pairs of channels, but 6 channels rotate; give 3"):
        dataclasses.replace(MHA, rotary_frequencies=(1.0, 0.1))


def test_impossible_calls_are_refused() -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 5)
    resid_BTD = torch.zeros(2, 5, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown site 'zz'; the sites are resid_pre, q, k, v, pattern, z, attn_out"):
        decoder.trace(x_BT, sites=("zz",))
    with pytest.raises(ValueError, match="layer 3 is out of range; this model's are 0 to 2"):
        decoder.trace(x_BT, sites=("z",), layers=(0, 3))
    with pytest.raises(ValueError, match="layer 0 is out of range; this run starts at layer 1 and the last is 2"):
        decoder.trace(x_BT, sites=("z",), layers=(0,), start=(1, resid_BTD))
    for start in (-1, 4):
        with pytest.raises(ValueError, match=f"start layer {start} is out of range; this model can start at 0 to 3"):
            decoder.trace(x_BT, start=(start, resid_BTD))
    with pytest.raises(ValueError, match="logits='first' is none of 'all', 'last' and None"):
        inspect.unwrap(Decoder.trace)(decoder, x_BT, logits="first")  # as in use, without the shape checks
    with pytest.raises(ValueError, match="25 tokens exceed the model's 24 learned positions"):
        drawn(GPT2)(tokens(1, 25))


def test_shapes_are_checked_here() -> None:
    """tests/conftest.py wraps the decoder; in use it is not."""
    decoder = drawn(MHA)
    for call in (
        lambda: decoder(tokens(2, 5)[0]),
        lambda: decoder(tokens(2, 5).double()),
        lambda: decoder(tokens(2, 5), tokens(2, 4)),
        lambda: decoder.trace(tokens(2, 5), documents_BT=tokens(3, 5)),
    ):
        with pytest.raises(TypeCheckError):
            call()
