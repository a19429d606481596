"""Citations: which sentences of a context made a language model say this?

    python examples/cite_a_context.py                  # a small model of word pairs, seconds
    python examples/cite_a_context.py NAME             # a causal language model of HuggingFace

HuggingFaceTB/SmolLM2-135M-Instruct takes a minute on one core: the response should lose 16.0 nats, and loses 15.1, without the
sentence that has it, and -.1 without a random one.

The context is what scikit-learn says about three of its data sets. Random sentences are left out, the model is asked each time
how likely the response still is, and a sparse regression tells what each sentence adds. Then the model is asked again
without the sentences that are cited most.
"""

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable

from sklearn.datasets import load_diabetes, load_digits, load_iris

from applications.citations import Context, citations, sentences
from estimators.regression import Regression
from recipe import Retrain

question = "Which of the classes can be told apart by a straight line?"
response = "One class is linearly separable from the other 2."
ablations = 64  # how often the model is asked


def word_pairs(kept: list[str]) -> float:
    """Log-probability by a model of word pairs, counted in the context, and of single words, a tenth of the time."""
    words = re.findall(r"\w+", " ".join(kept).lower())
    pairs, singles = Counter(itertools.pairwise(words)), Counter(words)
    said = re.findall(r"\w+", response.lower())
    value = 0.0
    for before, word in itertools.pairwise(said):
        after = pairs[before, word] / max(1, singles[before])
        value += math.log(0.9 * after + 0.1 * (singles[word] + 1) / (len(words) + 10_000))
    return value


def hugging_face(name: str) -> Callable[[list[str]], float]:
    """Log-probability of the response by a causal language model, the context in the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name).eval()
    answer = tokenizer(" " + response, add_special_tokens=False, return_tensors="pt").input_ids

    def log_probability(kept: list[str]) -> float:
        prompt = f"Context: {' '.join(kept)}\n\nQuestion: {question}\nAnswer:"
        ids = torch.cat([tokenizer(prompt, return_tensors="pt").input_ids, answer], 1)
        with torch.no_grad():
            scores = model(ids).logits[0, -answer.shape[1] - 1 : -1].log_softmax(1)
        return float(scores.gather(1, answer[0][:, None]).sum())

    return log_probability


pages = " ".join(load().DESCR.partition(".. dropdown")[0] for load in (load_digits, load_iris, load_diabetes))
sources = [s for s in sentences(re.sub(r"\s+", " ", pages)) if len(s.split()) > 6 and "|" not in s and ":" not in s]
log_probability = hugging_face(sys.argv[1]) if len(sys.argv) > 1 else word_pairs
context = Context(sources, log_probability)
f_hat = Regression(subsets=ablations).fit(context.setting)
found = citations(context, f_hat, response, Retrain(context.setting), k=1)
for i in found.order[:3]:
    print(f"{float(found.effects[i]):+6.2f} nats  {context.sources[i]}")
print(
    f"without the first: predicted {found.predicted:.2f}, actual {found.dropped:.2f}, a random one {found.control:.2f}"
)
