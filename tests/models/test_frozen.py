"""The frozen decoder is the model: exactly at its input, linearly, by paths that §9's formula writes out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from headdyn.models.decoder import Decoder
from headdyn.models.frozen import direct_shares, freeze, head_flow, head_values, pull
from headdyn.models.frozen_pairs import contributions, full_tensor, tensor_norms
from tests import small_models

QWEN2 = dataclasses.replace(small_models.GQA, qk_norm=False, qkv_bias=True)
CONFIGS = {**small_models.CONFIGS, "qwen2": QWEN2}
LENGTH = 9


@pytest.fixture(params=CONFIGS)
def decoder(request) -> Decoder:
    return small_models.drawn(CONFIGS[request.param])


@pytest.fixture(params=["up", "gate"])
def branch(request) -> str:
    return request.param


def applied(tensor_IDJD: torch.Tensor, x_JD: torch.Tensor) -> torch.Tensor:
    return torch.einsum("idje,je->id", tensor_IDJD, x_JD)


def error(tensor_IDJD: torch.Tensor, frozen) -> float:
    """Largest |Σ_j T_ij x_j + c_i − y_i| as a share of the largest |y_i|."""
    y_ID = frozen.residual[-1][0]
    off_ID = applied(tensor_IDJD, frozen.residual[0][0]) + frozen.affine()[0] - y_ID
    return float(off_ID.abs().max() / y_ID.abs().max())


def output(decoder: Decoder, x_BTD: torch.Tensor) -> torch.Tensor:
    """What the last layer leaves when the first one reads x."""
    last = decoder.config.num_layers - 1
    dummy = torch.zeros(x_BTD.shape[:2], dtype=torch.long)
    return decoder.trace(dummy, start=(0, x_BTD), sites=("resid_post",), logits=None)["resid_post", last]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_tensor_makes_of_the_input_what_the_model_does(decoder, branch, dtype, tolerance):
    frozen = freeze(decoder.to(dtype), small_models.tokens(1, LENGTH), branch=branch)
    assert error(full_tensor(frozen), frozen) < tolerance
    has_biases = decoder.config.qkv_bias or decoder.config.norm == "layer"
    assert bool(frozen.affine().abs().max() > 0.1) == has_biases


def test_the_jacobian_does_not(decoder):
    frozen = freeze(decoder, small_models.tokens(1, LENGTH))
    x_JD = frozen.residual[0][0]
    jacobian_IDJD = torch.autograd.functional.jacobian(lambda x_JD: output(decoder, x_JD[None])[0], x_JD)
    assert error(jacobian_IDJD, frozen) > 0.1


def test_a_tensor_frozen_at_another_input_does_not(decoder, branch):
    frozen, other = (freeze(decoder, small_models.tokens(1, LENGTH, seed=s), branch=branch) for s in (0, 1))
    assert error(full_tensor(other), frozen) > 0.1


def test_no_token_acts_on_an_earlier_one(decoder):
    tensor_IDJD = full_tensor(freeze(decoder, small_models.tokens(1, LENGTH)))
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    by_pair_IJDD = tensor_IDJD.permute(0, 2, 1, 3)
    assert by_pair_IJDD[later].abs().max() == 0
    assert by_pair_IJDD[torch.eye(LENGTH, dtype=torch.bool)].abs().amax((-1, -2)).min() > 0


def test_it_is_linear_where_the_model_is_not(decoder, branch):
    frozen = freeze(decoder, small_models.tokens(1, LENGTH), branch=branch)
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn((2, 1, 1, LENGTH, decoder.config.d_model), generator=generator, dtype=torch.float64)

    def last(x: torch.Tensor) -> torch.Tensor:
        return list(frozen.states(x, biases=False))[-1]

    torch.testing.assert_close(last(2 * a - 3 * b), 2 * last(a) - 3 * last(b), atol=1e-10, rtol=1e-10)
    model = [output(decoder, x[0]) for x in (2 * a - 3 * b, a, b)]
    assert (model[0] - (2 * model[1] - 3 * model[2])).abs().max() > 0.1


def gains(norm: nn.Module, x_ID: torch.Tensor) -> torch.Tensor:
    """What an RMSNorm multiplies its inputs by, a diagonal matrix a token."""
    return torch.stack([torch.diag(norm.weight / (x_D @ x_D / len(x_D) + norm.eps).sqrt()) for x_D in x_ID])


@torch.no_grad()
def by_formula(
    decoder: Decoder, tokens: torch.Tensor, group_of=lambda head, size: head // size
) -> tuple[torch.Tensor, torch.Tensor]:
    """T and c as §9 writes them, multiplied up layer by layer: with attention Σ_h A_ij a_j M_h and the MLP's F_i,
    (I + F_i)(δ_ij I + attention) where the MLP reads what attention wrote, δ_ij (I + F_i) + attention where both read
    the same. A norm behind attention or the MLP multiplies what they write. A LayerNorm's C = I − 11ᵀ/D stands in M_h and F_i; every bias goes into c by the paths behind it.
    """
    c = decoder.config
    trace = decoder.trace(tokens, sites=("resid_pre", "pattern", "z", "attn_out"))
    eye = torch.eye(c.d_model, dtype=torch.float64)
    centring = eye - torch.ones_like(eye) / c.d_model if c.norm == "layer" else eye
    zero = eye.new_zeros(c.d_model)
    total = torch.einsum("ij,ab->ijab", torch.eye(LENGTH, dtype=torch.float64), eye)
    affine = zero.expand(LENGTH, -1)

    def of(bias: torch.Tensor | None) -> torch.Tensor | float:
        return 0.0 if bias is None else bias

    for layer, block in enumerate(decoder.blocks):
        x = trace["resid_pre", layer][0]
        middle = x if c.parallel_residual else x + trace["attn_out", layer][0]
        a, b = ((v @ centring).pow(2).mean(-1).add(c.norm_eps).rsqrt() for v in (x, middle))
        w, mlp = decoder.head_weights(layer), block.mlp
        reads_v = eye if w.norm_gain_D is None else torch.diag(w.norm_gain_D) @ centring
        reads_mlp = torch.diag(block.norm2.weight) @ centring
        if c.post_norm:
            a, b, reads_mlp = torch.ones_like(a), torch.ones_like(b), eye
        attention_gain = mlp_gain = eye.expand(LENGTH, -1, -1)
        if c.post_norm:
            attention_gain = gains(block.norm1, torch.einsum("ihd,hde->ie", trace["z", layer][0], w.o_HdD))
            mlp_gain = gains(block.norm2, mlp(middle[None])[0])
        step = torch.zeros(LENGTH, LENGTH, c.d_model, c.d_model, dtype=torch.float64)
        beside = torch.zeros(LENGTH, c.d_model, dtype=torch.float64)
        for i in range(LENGTH):
            read = reads_mlp @ middle[i] * b[i] + of(block.norm2.bias)
            up = mlp.up.weight @ read + of(mlp.up.bias)
            if mlp.gate is not None:
                held = nn.functional.silu(mlp.gate.weight @ read)
            else:
                held = nn.functional.gelu(up, approximate="tanh" if c.mlp == "gelu_tanh" else "none") / up
            f_i = mlp_gain[i] @ mlp.down.weight @ torch.diag(held) @ mlp.up.weight @ reads_mlp * b[i]
            f_bias = mlp.down.weight @ (held * (mlp.up.weight @ (of(block.norm2.bias) + zero) + of(mlp.up.bias)))
            written_bias = of(w.o_bias_D) + zero
            for j in range(i + 1):
                attention = torch.zeros_like(eye)
                for head in range(c.num_heads):
                    group = group_of(head, c.queries_per_group)
                    weight = trace["pattern", layer][0, head, i, j]
                    w_ov = w.o_HdD[head].T @ w.v_GDd[group].T
                    attention += weight * a[j] * attention_gain[i] @ w_ov @ reads_v
                    v_bias = zero[: c.head_dim] if w.v_bias_Gd is None else w.v_bias_Gd[group]
                    written_bias = written_bias + weight * (
                        w_ov @ (of(w.norm_bias_D) + zero) + w.o_HdD[head].T @ v_bias
                    )
                own = eye if i == j else torch.zeros_like(eye)
                step[i, j] = own @ (eye + f_i) + attention if c.parallel_residual else (eye + f_i) @ (own + attention)
            beside[i] = written_bias + f_bias + of(mlp.down.bias)
            if not c.parallel_residual:
                beside[i] += f_i @ written_bias
        total = torch.einsum("ikab,kjbc->ijac", step, total)
        affine = torch.einsum("ikab,kb->ia", step, affine) + beside
    return total.permute(0, 2, 1, 3), affine


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_product_that_the_definition_writes_out(name):
    decoder, tokens = small_models.drawn(CONFIGS[name]), small_models.tokens(1, LENGTH)
    frozen = freeze(decoder, tokens)
    tensor_IDJD, (expected_IDJD, affine_ID) = full_tensor(frozen), by_formula(decoder, tokens)
    torch.testing.assert_close(tensor_IDJD, expected_IDJD, atol=1e-10, rtol=0)
    torch.testing.assert_close(frozen.affine()[0], affine_ID, atol=1e-10, rtol=0)
    if name == "gqa":  # mutant: heads dealt out to groups in turn
        mutant_IDJD, _ = by_formula(decoder, tokens, group_of=lambda head, size: head % 2)
        assert (tensor_IDJD - mutant_IDJD).abs().max() > 0.1


@pytest.mark.parametrize("name", ["neox", "gpt2"])
def test_a_mean_held_as_a_bias_is_exact_and_another_operator(name, monkeypatch):
    """The mutant that exactness cannot see: the norms' means frozen too, and counted to the affine term."""
    decoder, tokens = small_models.drawn(CONFIGS[name]), small_models.tokens(1, LENGTH)
    trace = decoder.trace(tokens, sites=("resid_pre", "attn_out"))
    held = {}
    for layer, block in enumerate(decoder.blocks):
        x_BTD = trace["resid_pre", layer]
        middle_BTD = x_BTD if block.parallel else x_BTD + trace["attn_out", layer]
        held[block.norm1], held[block.norm2] = (v.mean(-1, keepdim=True).detach() for v in (x_BTD, middle_BTD))

    def holding_the_mean(norm, x_NBTD, scale_BT, biases):
        gain_BTD = scale_BT[..., None] * norm.weight
        return (x_NBTD - held[norm]) * gain_BTD + norm.bias if biases else x_NBTD * gain_BTD

    monkeypatch.setattr("headdyn.models.frozen._norm", holding_the_mean)
    frozen = freeze(decoder, tokens)
    mutant_IDJD, (expected_IDJD, affine_ID) = full_tensor(frozen), by_formula(decoder, tokens)
    assert error(mutant_IDJD, frozen) < 1e-10
    assert (mutant_IDJD - expected_IDJD).abs().max() > 0.01
    assert (frozen.affine()[0] - affine_ID).abs().max() > 0.01


def test_the_two_branches_of_a_swiglu_are_different_operators_with_one_output():
    decoder, tokens = small_models.drawn(small_models.GQA), small_models.tokens(1, LENGTH)
    up, gate = (full_tensor(freeze(decoder, tokens, branch=branch)) for branch in ("up", "gate"))
    assert (up - gate).abs().max() > 0.1
    neox = small_models.drawn(small_models.NEOX)
    assert torch.equal(*(full_tensor(freeze(neox, tokens, branch=branch)) for branch in ("up", "gate")))


@pytest.mark.parametrize("floats", [1, 2**20])
def test_norms_are_those_of_the_full_tensor(decoder, branch, floats, monkeypatch):
    monkeypatch.setattr("headdyn.models.frozen_pairs._CHUNK_FLOATS", floats)
    frozen = freeze(decoder, small_models.tokens(1, LENGTH), branch=branch)
    norm_IJ = full_tensor(frozen).square().sum((1, 3)).sqrt()
    torch.testing.assert_close(tensor_norms(frozen), norm_IJ, atol=1e-12, rtol=0)


def test_random_probes_estimate_them_as_well_as_they_say():
    frozen = freeze(small_models.drawn(small_models.NEOX), small_models.tokens(1, LENGTH))
    exact_IJ, generator = tensor_norms(frozen), torch.Generator().manual_seed(0)
    below = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    estimates = torch.stack([tensor_norms(frozen, probes=8, generator=generator)[below] for _ in range(200)]).square()
    relative = estimates / exact_IJ[below].square()
    assert relative.std(0).max() < (2 / 8) ** 0.5 < 4 * relative.std(0).max()
    assert (relative.mean(0) - 1).abs().max() < 5 * (2 / 8 / 200) ** 0.5
    with pytest.raises(ValueError, match="probes=0 must be at least 1"):
        tensor_norms(frozen, probes=0)


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def into_residual(decoder: Decoder, layer: int, written_BTHD: torch.Tensor) -> torch.Tensor:
    """What the residual stream receives of what the heads write: a norm behind them divides by their sum's RMS."""
    if not decoder.config.post_norm:
        return written_BTHD
    norm, sum_BT1D = decoder.blocks[layer].norm1, written_BTHD.sum(2, keepdim=True)
    return written_BTHD / rms(sum_BT1D, norm.eps) * norm.weight


def test_direct_shares_are_what_each_part_writes_and_sum_to_the_output(decoder):
    tokens = small_models.tokens(2, LENGTH)
    frozen = freeze(decoder, tokens)
    generator = torch.Generator().manual_seed(5)
    cotangent_KBTD = torch.randn(3, *frozen.residual[-1].shape, generator=generator, dtype=torch.float64)
    direct = direct_shares(frozen, cotangent_KBTD)
    total_KB = direct.embedding_KB + direct.heads_LKBH.sum((0, 3)) + direct.mlps_LKB.sum(0) + direct.biases_KB
    output_KB = (cotangent_KBTD * frozen.residual[-1]).sum((2, 3))
    torch.testing.assert_close(total_KB, output_KB, atol=1e-10, rtol=1e-12)
    pulled, _ = pull(frozen, cotangent_KBTD)
    torch.testing.assert_close(
        pulled.token_shares(frozen).sum(-1) + direct.biases_KB, output_KB, atol=1e-10, rtol=1e-12
    )
    z_BTHd = torch.einsum("bhqk,bkhd->bqhd", frozen.layers[0].pattern_BHQK, head_values(frozen, 0, biases=False))
    written_BTHD = into_residual(decoder, 0, torch.einsum("bthd,hdD->bthD", z_BTHd, decoder.head_weights(0).o_HdD))
    heads_KBH = torch.einsum("kbtD,bthD->kbh", cotangent_KBTD, written_BTHD)
    torch.testing.assert_close(direct.heads_LKBH[0], heads_KBH, atol=1e-10, rtol=0)
    has_biases = decoder.config.qkv_bias or decoder.config.norm == "layer"
    assert bool(direct.biases_KB.abs().max() > 1e-3) == has_biases
    if not has_biases:  # then the parts are those that a trace shows
        trace = decoder.trace(tokens, sites=("z", "mlp_out"))
        for layer in range(decoder.config.num_layers):
            o_HdD = decoder.head_weights(layer).o_HdD
            written_BTHD = into_residual(decoder, layer, torch.einsum("bthd,hdD->bthD", trace["z", layer], o_HdD))
            heads_KBH = torch.einsum("kbtD,bthD->kbh", cotangent_KBTD, written_BTHD)
            torch.testing.assert_close(direct.heads_LKBH[layer], heads_KBH, atol=1e-10, rtol=0)
            mlps_KB = torch.einsum("kbtD,btD->kb", cotangent_KBTD, trace["mlp_out", layer])
            torch.testing.assert_close(direct.mlps_LKB[layer], mlps_KB, atol=1e-10, rtol=0)


def gathered(frozen, first: int = 0, last: int | None = None) -> list[torch.Tensor]:
    """The streamed contributions as whole arrays JID, one a layer."""
    length, width = frozen.residual[0].shape[1:]
    layers = (len(frozen.layers) - 1 if last is None else last) - first + 1
    arrays = [torch.zeros(length, length, width, dtype=frozen.residual[0].dtype) for _ in range(layers)]
    for start, states in contributions(frozen, first=first, last=last):
        for array, state_JID in zip(arrays, states, strict=True):
            array[start : start + len(state_JID), start:] = state_JID
    return arrays


@pytest.mark.parametrize("floats", [1, 900, 2**20])
def test_contributions_are_the_tensor_times_the_input(decoder, floats, monkeypatch):
    monkeypatch.setattr("headdyn.models.frozen_pairs._CHUNK_FLOATS", floats)
    frozen = freeze(decoder, small_models.tokens(1, LENGTH))
    whole_JID = torch.einsum("idje,je->jid", full_tensor(frozen), frozen.residual[0][0])
    *_, last_JID = gathered(frozen)
    torch.testing.assert_close(last_JID, whole_JID, atol=1e-12, rtol=0)


def test_a_layers_own_map_reads_that_layers_input(decoder):
    frozen = freeze(decoder, small_models.tokens(1, LENGTH))
    (block_JID,) = gathered(frozen, first=1, last=1)
    layer_of_zeros, _ = frozen.layer(1, torch.zeros_like(frozen.residual[1])[None])
    torch.testing.assert_close(block_JID.sum(0) + layer_of_zeros[0, 0], frozen.residual[2][0], atol=1e-10, rtol=0)
    *_, through_two = gathered(frozen, first=1, last=2)
    assert len(gathered(frozen, first=1)) == 2 and not torch.allclose(through_two, block_JID)


def test_a_heads_flow_is_the_norm_of_what_it_writes(decoder):
    frozen = freeze(decoder, small_models.tokens(2, LENGTH))
    w, pattern = decoder.head_weights(1), frozen.layers[1].pattern_BHQK
    v_BTHd = head_values(frozen, 1, biases=False)
    written_BHQKD = torch.einsum("bhqk,bkhd,hde->bhqke", pattern, v_BTHd, w.o_HdD)
    if decoder.config.post_norm:  # without biases all that a position's heads and keys write is what its norm divides
        norm, sum_BQD = decoder.blocks[1].norm1, written_BHQKD.sum((1, 3))
        written_BHQKD = written_BHQKD / rms(sum_BQD, norm.eps)[:, None, :, None] * norm.weight
    written = written_BHQKD.norm(dim=-1)
    torch.testing.assert_close(head_flow(frozen, 1), written, atol=1e-12, rtol=0)
    z_BTHd = torch.einsum("bhqk,bkhd->bqhd", pattern, head_values(frozen, 1))
    traced = decoder.trace(small_models.tokens(2, LENGTH), sites=("z",))["z", 1]
    torch.testing.assert_close(z_BTHd, traced, atol=1e-12, rtol=0)


def test_logit_shares_of_the_tokens_sum_to_the_logit(decoder, branch):
    tokens = small_models.tokens(2, LENGTH)
    frozen = freeze(decoder, tokens, branch=branch)
    u_BTD = frozen.unembedding(tokens)
    cotangent_KBTD = torch.zeros(2, *u_BTD.shape, dtype=torch.float64)
    targets = (4, 7)
    for k, t in enumerate(targets):
        cotangent_KBTD[k, :, t] = u_BTD[:, t]
    pulled, _ = pull(frozen, cotangent_KBTD)
    shares_KBT = pulled.token_shares(frozen)
    with torch.no_grad():
        logits_BTV = decoder(tokens)
        picked_BT = logits_BTV.gather(-1, tokens[..., None])[..., 0] - logits_BTV.mean(-1)
        beside_BT = (u_BTD * frozen.affine()).sum(-1)
        if decoder.norm.bias is not None:
            centred_VD = decoder.unembed.weight - decoder.unembed.weight.mean(0)
            beside_BT = beside_BT + centred_VD[tokens] @ decoder.norm.bias
    for k, t in enumerate(targets):
        torch.testing.assert_close(shares_KBT[k].sum(-1) + beside_BT[:, t], picked_BT[:, t], atol=1e-10, rtol=0)
        assert shares_KBT[k, :, t + 1 :].abs().max() == 0
    tensor_IDJD = full_tensor(freeze(decoder, tokens[:1], branch=branch))
    by_tensor = torch.einsum("d,dje,je->j", u_BTD[0, 7], tensor_IDJD[7], frozen.residual[0][0])
    torch.testing.assert_close(shares_KBT[1, 0], by_tensor, atol=1e-10, rtol=0)


def test_a_heads_share_is_what_the_frozen_output_loses_without_it(decoder):
    tokens = small_models.tokens(1, LENGTH)
    frozen = freeze(decoder, tokens)
    cotangent_KBTD = torch.zeros(1, 1, LENGTH, decoder.config.d_model, dtype=torch.float64)
    cotangent_KBTD[0, 0, 6] = frozen.unembedding(tokens)[0, 6]
    pulled, z_LBTHd = pull(frozen, cotangent_KBTD)
    share_LH = (pulled.z_LKBTHd[:, 0] * z_LBTHd).sum((1, 2, 4))
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        pattern_BHQK = frozen.layers[layer].pattern_BHQK.clone()
        pattern_BHQK[:, head] = 0
        layers = list(frozen.layers)
        layers[layer] = dataclasses.replace(layers[layer], pattern_BHQK=pattern_BHQK)
        without = dataclasses.replace(frozen, layers=layers)
        *_, state_NBTD = without.states(frozen.residual[0][None])
        lost = ((frozen.residual[-1] - state_NBTD[0]) * cotangent_KBTD[0]).sum()
        torch.testing.assert_close(share_LH[layer, head], lost, atol=1e-10, rtol=0)


def test_nothing_flows_between_documents():
    decoder, tokens = small_models.drawn(small_models.GQA), small_models.tokens(1, LENGTH)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2]])
    frozen = freeze(decoder, tokens, documents_BT=documents)
    tensor_IDJD = full_tensor(frozen)
    assert error(tensor_IDJD, frozen) < 1e-10
    assert tensor_IDJD[5:, :, :4].abs().max() == 0 and tensor_IDJD[6, :, 4].abs().max() > 0


def test_parameters_gather_no_gradient(decoder):
    frozen = freeze(decoder, small_models.tokens(1, LENGTH))
    pull(frozen, torch.ones(3, *frozen.residual[-1].shape, dtype=torch.float64))
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_a_tensor_too_large_is_refused_with_its_size_and_the_way_round():
    frozen = freeze(small_models.drawn(small_models.MHA), small_models.tokens(1, LENGTH))
    size = (LENGTH * 16) ** 2 * 8
    with pytest.raises(ValueError, match=rf"{size} bytes.*max_tensor_bytes={size - 1}.*contributions\(\).*pull\(\)"):
        full_tensor(frozen, max_tensor_bytes=size - 1)
    assert full_tensor(frozen, max_tensor_bytes=size).numel() * 8 == size


def test_what_cannot_be_frozen_is_named():
    class Gated(nn.Linear):
        pass

    decoder = small_models.drawn(small_models.MHA)
    decoder.blocks[1].mlp.up = Gated(16, 20, bias=False)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.up is a Gated, which TensorLens cannot freeze"):
        freeze(decoder, small_models.tokens(1, LENGTH))
    relu = Decoder(dataclasses.replace(small_models.MHA, mlp="relu"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mlp='relu' has an activation that TensorLens cannot freeze"):
        freeze(relu, small_models.tokens(1, LENGTH))
    with pytest.raises(ValueError, match=r"torch\.float16; use decoder\.float\(\)"):
        freeze(small_models.drawn(small_models.MHA).half(), small_models.tokens(1, LENGTH))


def test_readouts_of_one_sequence_refuse_several():
    frozen = freeze(small_models.drawn(small_models.MHA), small_models.tokens(3, LENGTH))
    with pytest.raises(ValueError, match="3 were frozen"):
        full_tensor(frozen)
    with pytest.raises(ValueError, match="3 were frozen"):
        next(contributions(frozen))
