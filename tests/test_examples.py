"""Short scripts of `examples/` run as users run them, and find what they say they find."""

import re
import runpy
from pathlib import Path

import pytest

VICTIMS = ("clean", "random flips", "poison")
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, capsys, monkeypatch):
    """What a script prints."""
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("forget_a_digit.py", r"one Newton step: 0\.0\d+ \((\d\d+) times smaller\)"),
        ("blame_a_prediction.py", r"without \d+ of them, retrained: margin -"),
    ],
)
def test_tasks(name, finding, capsys, monkeypatch):
    assert re.search(finding, run(name, capsys, monkeypatch))


def test_poison_digits(capsys, monkeypatch):
    said = run("poison_digits.py", capsys, monkeypatch)
    clean, flips, poison = (float(re.search(rf"^{name} +\S+ +(\S+)", said, re.M)[1]) for name in VICTIMS)
    assert poison < min(clean, flips) - 0.005
    assert "self-influence finds 100 % of the poison in 10 % of the data" in said


def test_cite_a_context(capsys, monkeypatch):
    said = run("cite_a_context.py", capsys, monkeypatch)
    assert "nats  One class is linearly separable" in said.splitlines()[0]
    predicted, actual, chance = (float(v) for v in re.findall(r"-?\d+\.\d+", said.splitlines()[-1]))
    assert predicted == pytest.approx(actual, rel=0.1)
    assert abs(chance) < actual / 10


def test_check_for_copies(capsys, monkeypatch):
    pytest.importorskip("bm25s", reason="needs the extra retrieval")
    said = run("check_for_copies.py", capsys, monkeypatch)
    assert "15 words in a row: 'One class is linearly separable" in said
    assert "pixels are counted" in said
    assert said.endswith("copied, 8 words or more: [0]\n")


def test_value_your_data(capsys, monkeypatch):
    said = run("value_your_data.py", capsys, monkeypatch)
    areas = [float(v) for v in re.findall(r"area (\d\.\d+)", said)]
    found = [int(v) for v in re.findall(r"(\d+)% of its", said)]
    assert min(areas) > 0.05
    assert min(found) > 70


def test_select_text(capsys, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra text")
    pytest.importorskip("transformers", reason="needs the extra text")
    monkeypatch.chdir(tmp_path)
    said = run("select_text.py", capsys, monkeypatch)
    shares = {name.strip(): int(v) for name, v in re.findall(r"^(.+?) {2,}(\d+)%", said, re.M)}
    accuracy = {name.strip(): float(v) for name, v in re.findall(r"^(.+?) {2,}\d+% +(\d\.\d+)$", said, re.M)}
    assert shares["EK-FAC"] > 90
    assert min(accuracy["LESS"], accuracy["EK-FAC"]) > accuracy["random"] + 0.1
    assert len(datasets.load_from_disk("runs/chosen_text")) == 40
