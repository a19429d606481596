"""Selecting fine-tuning text: what of a mixed pile should a small transformer read to tell good from bad reviews?

    pip install 'plug-in-recipe[text]'
    python examples/select_text.py

Half of the pile are short reviews; the other half are notices, labelled urgent or not, which teach nothing about
reviews. Attribution looks at a short warm-up run and at 100 reviews that we care about, and chooses: LESS by gradients
along the run, those of the pile as Adam's steps, EK-FAC by influence. Each choice is verified by training anew, on
other reviews. Offline, in less than half a minute.

The sentences are made up from a few words. With real text, the lists come from
`datasets.load_dataset("stanfordnlp/sst2")` and the like, and the word numbers from a tokenizer.
"""

import random

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from applications.data_selection import select
from estimators.ekfac import EKFAC
from estimators.less import LESS
from recipe import AdamW, Correct, Loss, Retrain, Setting, TopK

size, half = 40, 300  # texts to choose; reviews in the pile, and as many notices
length = 12  # words of a text
training, warm_up = (AdamW(epochs, batch_size=8, lr=5e-3) for epochs in (12, 3))
seeds = range(3)  # of the retrainings
out = "runs/chosen_text"  # where the texts that EK-FAC chooses are saved


def words(text):
    return text.split()


things = words("film plot cast script scene ending music story hero joke camera sequel")
good = words("lovely funny warm brilliant moving clever charming superb witty tender fresh gripping joyful wise vivid")
bad = words("dull stale clumsy boring tedious flat lazy awful shallow messy bland silly hollow lifeless weak")
places = words("station library office harbour school clinic market bridge museum garage")
urgent, calm = words("closed blocked flooded delayed broken"), words("open ready quiet clean empty")
rng = random.Random(0)


def review(label):
    first, second = rng.choices(good if label else bad, k=2)
    return f"the {rng.choice(things)} is {first} and the {rng.choice(things)} seems {second} to me"


def notice(label):
    return f"please note that the {rng.choice(places)} is {rng.choice(urgent if label else calm)} on this day"


def numbers(text):
    row = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words(text)]
    return row + [0] * (length - len(row))


def dataset(reviews, notices=0):
    labels = [rng.randrange(2) for _ in range(reviews + notices)]
    texts = [(review if i < reviews else notice)(label) for i, label in enumerate(labels)]
    return Dataset.from_dict({"text": texts, "input_ids": [numbers(text) for text in texts], "labels": labels})


def tensors(data):
    return data.select_columns(["input_ids", "labels"]).with_format("torch")


def small_bert():
    config = BertConfig(
        vocab_size=len(vocabulary) + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
        attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(config)


vocabulary = {}
pool, targets, test = dataset(half, half), dataset(100), dataset(500)
start, setting = (Setting(small_bert, tensors(pool), tensors(targets), a, output=Loss()) for a in (warm_up, training))
chosen = {
    "LESS": select(start, size, LESS(checkpoints=3, models=3), TopK(), groups=pool["labels"]),
    "EK-FAC": select(start, size, EKFAC(models=3), TopK(), groups=pool["labels"]),
}
decisions = {name: solution.decision for name, solution in chosen.items()}
points = torch.randperm(setting.n, generator=torch.Generator().manual_seed(0))[:size]
decisions["random"] = torch.zeros(setting.n).index_fill(0, points, 1.0)
decisions["all of it"] = torch.ones(setting.n)

accuracy = Retrain(setting, seeds).on(tensors(test), Correct())(torch.stack(list(decisions.values()))).mean(1)
print("chosen by    reviews among them    accuracy on other reviews")
for (name, w), value in zip(decisions.items(), accuracy.tolist()):
    print(f"{name:<12} {w[:half].sum() / w.sum():>18.0%} {value:>28.3f}")
chosen["EK-FAC"].of(pool).save_to_disk(out)
print(f"what EK-FAC chose is in {out}")
