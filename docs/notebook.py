"""headdyn in one notebook: train two conditions, look at a head, ablate it, split an answer into parts, compare seeds.

`headdyn notebook` opens a copy with marimo (extra `notebook`); `python headdyn_notebook.py` runs it as a script.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="headdyn: a first look")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    import torch

    import headdyn
    from headdyn.core.figures import HeadMap, head_map
    from headdyn.core.statistics import bootstrap_interval
    from headdyn.models.frozen import direct_shares, freeze, pull
    from headdyn.models.tracing import Edit

    return Edit, HeadMap, bootstrap_interval, direct_shares, freeze, head_map, headdyn, mo, np, pull, torch


@app.cell
def _(mo):
    mo.md("""
    # A first look

    A small transformer learns sequences that switch between three artificial languages, called topics. There are two
    conditions with three random seeds each: in one the training sequences are shuffled, in the other they come topic
    after topic. At this scale (`mode=smoke`) a run takes seconds and is too short to show anything about topics. The
    notebook shows how to work with the results.

    `headdyn.sweep` takes the same arguments as the command line. Run the next cell twice: the second time it only
    reads what is complete.
    """)


@app.cell
def _(headdyn):
    sweep = headdyn.sweep(
        "mode=smoke", "ordering=shuffled,topic", "seed=0,1,2", "analysis=[loss,attention]", "tracking=none"
    )
    sweep.summary.select(["run", "data_ordering", "seed", "loss_nats", "selectivity"]).to_pandas()
    return (sweep,)


@app.cell
def _(sweep):
    sweep.figures["held_out_loss"]


@app.cell
def _(mo):
    mo.md("""
    ## Look at a head

    `run.heads` has a row for each layer, head and metric, with what chance gives for the same data (`null`), an
    interval, and the number of independent units. Here is the head with the highest selectivity: the share of its
    attention that goes to the same topic, minus the share when the topics of sequences are swapped.
    """)


@app.cell
def _(np, sweep):
    run = sweep.runs[0]
    selectivity_LH = run.heads.matrix("selectivity")
    layer, head = map(int, np.unravel_index(np.nanargmax(selectivity_LH), selectivity_LH.shape))
    run.heads.where(metric="selectivity", layer=layer, head=head).rows()[0]
    return head, layer, run


@app.cell
def _(head, layer, run):
    run.pattern_chart(layer, head)


@app.cell
def _(mo):
    mo.md("""
    ## Ablate it

    `decoder.trace` returns activations. An `Edit` replaces some of them during the forward pass, here the output `z` of
    one head by its mean over the same sequences. The model itself is not changed. The loss is computed for each
    sequence, because sequences are independent of one another and tokens are not.
    """)


@app.cell
def _(Edit, bootstrap_interval, np, run, torch):
    decoder, corpus = run.decoder(), run.corpus()
    tokens_BT = torch.from_numpy(corpus.val.tokens_NT[:64].astype("int64"))

    def losses(edits=()):
        """Next-token loss of every sequence, in nats."""
        logits_BTV = decoder.trace(tokens_BT[:, :-1], edits=edits).logits
        targets_BT = tokens_BT[:, 1:]
        return torch.nn.functional.cross_entropy(logits_BTV.mT, targets_BT, reduction="none").mean(1).numpy()

    def without(layer, head):
        """The edit that replaces one head's output by its mean."""
        z_BTHd = decoder.trace(tokens_BT[:, :-1], sites=("z",), layers=(layer,), logits=None)["z", layer]
        chosen_H1 = torch.arange(decoder.config.num_heads)[:, None] == head
        return Edit(site="z", layer=layer, value=z_BTHd.mean((0, 1)), where=chosen_H1)

    with torch.no_grad():
        clean_B = losses()
        moved_LHB = np.array(
            [
                [losses([without(one, two)]) - clean_B for two in range(decoder.config.num_heads)]
                for one in range(decoder.config.num_layers)
            ]
        )
    return clean_B, corpus, decoder, moved_LHB, tokens_BT


@app.cell
def _(HeadMap, head_map, headdyn, moved_LHB):
    headdyn.chart(
        head_map([HeadMap(title="loss without the head", value_LH=1000 * moved_LHB.mean(-1), unit="mnats", centre=0.0)])
    )


@app.cell
def _(bootstrap_interval, head, layer, mo, moved_LHB, np):
    moved = moved_LHB[layer, head]
    low, high = (float(end) for end in bootstrap_interval(moved, np.random.default_rng(0)))
    mo.md(
        f"Without head {layer}.{head} the loss moves by **{moved.mean():+.4f} nats** [{low:+.4f}, {high:+.4f}], "
        f"over {len(moved)} sequences."
    )
    return high, low, moved


@app.cell
def _(mo):
    mo.md("""
    ## Split an answer into parts

    With its attention patterns, norms and gates held at their values for one input, the model is linear in what its
    first block reads (TensorLens). So the logit of an answer, minus the mean logit over the vocabulary, is exactly a
    sum with one term for each input token. It is also exactly a sum over the parts of the model that write into the
    residual stream: embedding, heads and MLPs.
    """)


@app.cell
def _(decoder, direct_shares, freeze, pull, tokens_BT, torch):
    prompt_1T, answer = tokens_BT[:1, :12], int(tokens_BT[0, 12])
    frozen = freeze(decoder, prompt_1T)
    cotangent_1BTD = torch.zeros_like(frozen.residual[0])[None]
    cotangent_1BTD[0, :, -1] = frozen.unembedding(torch.full_like(prompt_1T, answer))[:, -1]

    by_token_T = pull(frozen, cotangent_1BTD)[0].token_shares(frozen)[0, 0]
    parts = direct_shares(frozen, cotangent_1BTD)
    with torch.no_grad():
        logits_V = decoder(prompt_1T)[0, -1]
    answer_logit = float(logits_V[answer] - logits_V.mean())
    by_part = {
        "embedding": float(parts.embedding_KB),
        **{f"heads of layer {i}": float(heads.sum()) for i, heads in enumerate(parts.heads_LKBH)},
        **{f"MLP of layer {i}": float(mlp) for i, mlp in enumerate(parts.mlps_LKB)},
    }
    return answer_logit, by_part, by_token_T


@app.cell
def _(answer_logit, by_part, by_token_T, mo):
    mo.md(
        f"The answer's logit is {answer_logit:.4f}. Its tokens sum to {float(by_token_T.sum()):.4f}, its parts to "
        f"{sum(by_part.values()):.4f}:\n\n" + "\n".join(f"- {name}: {share:+.3f}" for name, share in by_part.items())
    )


@app.cell
def _(mo):
    mo.md("""
    ## Compare the seeds

    The effect of a factor is the difference between its conditions at the same seed, averaged over seeds; the
    independent unit of a claim about training is a training. Three seeds give an interval, and `detectable`, the
    smallest effect that this many seeds would find with a probability of 80 %. One seed gives a value alone.
    """)


@app.cell
def _(sweep):
    effects = sweep.effects.to_pandas().query("kind == 'contrast'")
    effects[["effect", "outcome", "value", "ci_low", "ci_high", "q", "n", "detectable"]]
    return (effects,)


@app.cell
def _(sweep):
    sweep.answers


@app.cell
def _(mo, sweep):
    mo.md(f"The same on one page, which opens from disk: `{sweep.report}`")


if __name__ == "__main__":
    app.run()
