"""Citations: which sentence of a context made a small language model give this answer?

    python examples/cite_a_context.py

Trains a memory network on invented sentences in a few seconds, asks it a question about a context that it has never
seen, masks random sentences, fits a sparse datamodel, and asks again without the sentence it cites.
"""

import random

import torch
from torch import nn
from torch.nn import functional as F

from applications.citations import Context, citations
from estimators.regression import Regression
from recipe import Retrain

steps = 400  # of training
subsets = 64  # masked contexts that the model is asked with

PEOPLE = ["anna", "bert", "cleo", "dina", "emil", "fred", "gina", "hugo"]
TOWNS = ["oslo", "rome", "lima", "cairo", "kyoto", "perth"]
FOODS = ["tea", "rice", "figs", "soup"]
WORDS = {word: i for i, word in enumerate([*PEOPLE, *TOWNS, *FOODS, "lives", "in", "likes", "where", "what"])}


class Reader(nn.Module):
    """Looks at the sentences that fit the question, and answers from what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.ask = (nn.EmbeddingBag(len(WORDS), 32, mode="sum") for _ in range(3))
        self.answer = nn.Linear(32, len(WORDS))
        for bag in (self.key, self.value, self.ask):
            nn.init.normal_(bag.weight, std=0.1)  # so that attention starts out even

    def forward(self, sentences: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        b, s, t = sentences.shape
        key, value = (bag(sentences.view(b * s, t)).view(b, s, -1) for bag in (self.key, self.value))
        attention = (key @ self.ask(question)[:, :, None]).softmax(1)  # (b, s, 1)
        return self.answer((attention * value).sum(1)).log_softmax(1)


def codes(sentence: str) -> list[int]:
    return [WORDS[word] for word in (sentence.split() + sentence.split()[-1:] * 4)[:4]]  # padded to four words


def story(rng: random.Random, people: int = 4) -> tuple[list[str], str, str]:
    """Sentences, a question, its answer."""
    who = rng.sample(PEOPLE, people)
    homes, foods = [rng.choice(TOWNS) for _ in who], [rng.choice(FOODS) for _ in who]
    facts = [f"{p} lives in {town}" for p, town in zip(who, homes, strict=True)]
    facts += [f"{p} likes {food}" for p, food in zip(who, foods, strict=True)]
    rng.shuffle(facts)
    i = rng.randrange(people)
    return (
        (facts, f"where {who[i]} lives", homes[i]) if rng.random() < 0.5 else (facts, f"what {who[i]} likes", foods[i])
    )


torch.manual_seed(0)
rng, model = random.Random(0), Reader()
rule = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(steps):
    facts, questions, answers = zip(*(story(rng) for _ in range(64)), strict=True)
    said = model(
        torch.tensor([[codes(s) for s in some] for some in facts]), torch.tensor([codes(q) for q in questions])
    )
    rule.zero_grad()
    F.nll_loss(said, torch.tensor([WORDS[a] for a in answers])).backward()
    rule.step()

sources, question, truth = story(random.Random(1), people=6)


def log_probability(kept: list[str], word: str | None = None) -> float:
    """Of the response, given the sentences that are kept."""
    if not kept:
        return -float(torch.tensor(len(WORDS)).log())  # a model that has nothing to look at guesses
    with torch.no_grad():
        said = model(torch.tensor([[codes(s) for s in kept]]), torch.tensor([codes(question)]))[0]
    return float(said[WORDS[word or response]])


response = max(WORDS, key=lambda word: log_probability(sources, word))
context = Context(sources, log_probability)
f = Retrain(context.setting)
found = citations(context, Regression(subsets=subsets).fit(context.setting), response, f, k=1)
print(f"{question}? The model says {response} (right: {truth}).")
print(found.to_pandas().head(3).to_string(index=False))
print(f"without the cited sentence: {found.dropped:.2f} nats less likely ({found.predicted:.2f} predicted)")
print(f"without a random one: {found.control:.2f}")
