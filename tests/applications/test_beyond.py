"""Citations, corroboration and valuation, each where the answer is known."""

import pytest
import torch

from applications.citations import Context, citations, sentences
from applications.valuation import RANDOM, valuation, value_points
from estimators.regression import Regression
from recipe import Correct, LinearDatamodel, Retrain
from recipe.digits import flip_labels
from tests.worlds import logistic

SOURCES = ["Anna lives in Oslo.", "Bert likes tea.", "It rains.", "<b>Anna</b> moved in May.", "Tea is hot.", "End."]


def log_probability(kept):
    """A model that needs the first source, and is helped a little by the fourth."""
    return -6.0 + 4.0 * (SOURCES[0] in kept) + 1.0 * (SOURCES[3] in kept) - 0.5 * (SOURCES[1] in kept)


def test_citations_find_what_the_model_used():
    context = Context(SOURCES, log_probability)
    f = Retrain(context.setting)
    f_hat = Regression(subsets=64).fit(context.setting)
    found = citations(context, f_hat, "Anna lives in Oslo", f, k=2)
    assert found.order[:2] == [0, 3]
    assert found.order[-1] == 1
    assert float(found.effects[0] - found.effects[2]) == pytest.approx(4.0, abs=0.3)
    assert found.dropped == pytest.approx(5.0)
    assert found.predicted == pytest.approx(5.0, abs=0.6)
    assert found.control < found.dropped
    assert found.to_pandas()["source"].tolist() == found.order
    page = found.finding()
    assert "<b>" in page.parts[0].cards[0].content.pieces[3][0]
    assert "&lt;b&gt;" in page._repr_html_().replace("&amp;", "&")


def test_a_context_is_asked_with_the_sources_kept_in_their_order():
    asked = []
    context = Context(SOURCES, lambda kept: float(asked.append(kept) or len(kept)))
    f = Retrain(context.setting)
    weights = torch.tensor([[1.0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]])
    assert f(weights)[:, 0].tolist() == [3.0, 1.0]
    assert [SOURCES[0], SOURCES[3], SOURCES[5]] in asked


def test_bad_contexts():
    with pytest.raises(ValueError, match="at least two sources to leave some out; got 1"):
        Context(["One."], len)
    context = Context(SOURCES, log_probability)
    with pytest.raises(ValueError, match="Expected a datamodel of 6 sources and one output; it has 3 and 1"):
        citations(context, LinearDatamodel(torch.zeros(1), torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="Between 1 and 5 sources can be left out; got k=6"):
        citations(context, LinearDatamodel(torch.zeros(1), torch.zeros(1, 6)), k=6)


def test_sentences():
    assert sentences("A b. C d?\n\nE") == ["A b.", "C d?", "E"]


# ---- corroboration -------------------------------------------------------------------------------------------------
LIBRARY = [
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea.",
    "All happy families are alike; every unhappy family is unhappy in its own way.",
    "",
]


def test_near_verbatim_sources_are_found_with_what_is_shared():
    corroboration = pytest.importorskip("applications.corroboration")
    pytest.importorskip("bm25s", reason="needs bm25s")
    outputs = ["They say every unhappy family is unhappy in its own WAY, and so on.", "Nothing like it."]
    found = corroboration.Corroborator(LIBRARY)(outputs, k=2)
    best = found.supports[0][0]
    assert (best.source, best.words) == (2, 9)
    assert best.passage == "every unhappy family is unhappy in its own way"
    assert found.verbatim(8) == [0]
    assert len(found.to_pandas()) == 4
    marked = found.finding().parts[0].items[0].strips[0].cards[0].content.pieces
    assert "".join(piece for piece, _ in marked) == LIBRARY[2]


def test_characters_are_words_where_no_spaces_are_written():
    corroboration = pytest.importorskip("applications.corroboration")
    pytest.importorskip("bm25s", reason="needs bm25s")
    library = ["滚滚长江东逝水,浪花淘尽英雄。", "春眠不觉晓,处处闻啼鸟。"]
    found = corroboration.Corroborator(library)(["他说:浪花淘尽英雄"], k=1).supports[0][0]
    assert (found.source, found.words, found.passage) == (0, 6, "浪花淘尽英雄")


def test_an_embedding_of_ones_own():
    corroboration = pytest.importorskip("applications.corroboration")
    pytest.importorskip("bm25s", reason="needs bm25s")
    vectors = {text: torch.eye(4)[i].tolist() for i, text in enumerate(LIBRARY)} | {"xyz": [0, 1, 0, 0]}
    embed = lambda texts: torch.tensor([vectors[t] for t in texts]).numpy()  # noqa: E731
    assert corroboration.Corroborator(LIBRARY, embed)(["xyz"], k=1).supports[0][0].source == 1
    with pytest.raises(ValueError, match="k of at least 1; got 1 outputs and k=0"):
        corroboration.Corroborator(LIBRARY)(["x"], k=0)
    assert corroboration.Corroborator(LIBRARY)(["", "xyzzy"]).supports == ((), ())
    with pytest.raises(ValueError, match="no sources"):
        corroboration.Corroborator([])
    with pytest.raises(ValueError, match=r"embed must return \(b, d\), here \(4, d\)"):
        corroboration.Corroborator(LIBRARY, lambda texts: torch.zeros(3).numpy())


# ---- valuation -----------------------------------------------------------------------------------------------------
def test_removal_curves_tell_good_values_from_bad():
    setting = logistic()
    (x, y), wrong = flip_labels(setting.pool, 0.3, seed=0)
    from dataclasses import replace

    noisy = replace(setting, universe=(x, y))
    f = Retrain(noisy).on(output=Correct())
    truth = (~wrong).double() + 0.01 * torch.rand(40, dtype=torch.float64)
    found = valuation({"truth": truth, "upside down": -truth}, f, shares=[0, 0.3], draws=2)
    assert found.score("truth") > 0 > found.score("upside down")
    assert found.lowest["truth"][0] == pytest.approx(float(f(torch.ones(40)).mean()))
    keep = torch.ones(40).index_fill(0, truth.argsort()[:12], 0.0)
    assert found.lowest["truth"][1] == pytest.approx(float(f(keep).mean()))
    assert found.highest[RANDOM] == found.lowest[RANDOM]
    assert len(found.to_pandas()) == 12
    assert "truth ranks best" in found.finding().answer


def test_bad_values_and_shares():
    f_hat = LinearDatamodel(torch.zeros(2), torch.ones(2, 3))
    assert value_points(f_hat).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match=r"Expected finite values \(3,\).*wrong: \['a'\]"):
        valuation({"a": torch.zeros(2)}, f_hat)
    with pytest.raises(ValueError, match=r"wrong: \['a'\]"):
        valuation({"a": torch.tensor([0.0, 1.0, torch.nan])}, f_hat)
    with pytest.raises(ValueError, match="at least one draw; got 0"):
        valuation({"a": torch.zeros(3)}, f_hat, draws=0)
    with pytest.raises(ValueError, match="shares must ascend"):
        valuation({"a": torch.zeros(3)}, f_hat, shares=[0.5, 0.1])
