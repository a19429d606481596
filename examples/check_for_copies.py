"""Corroboration: which sources support these sentences, and is any of them copied?

    python examples/check_for_copies.py

The sources are the sentences that scikit-learn writes about its data sets; the outputs are three that a model could
have written: one copied with a word changed, one in other words, one about something else. Takes seconds. Needs the
extra `retrieval`.
"""

import re

from sklearn import datasets

from applications.citations import sentences
from applications.corroboration import Corroborator

words = 8  # in a row that count as a copy

pages = [getattr(datasets, f"load_{name}")().DESCR for name in ("iris", "digits", "wine", "breast_cancer", "diabetes")]
sources = [s for page in pages for s in sentences(re.sub(r"\s+", " ", page)) if len(s.split()) > 4]
outputs = [
    "As we know, one class is linearly separable from the other 2; the latter are NOT linearly separable.",
    "Blocks of four by four pixels are counted, so each number lies between nothing and sixteen.",
    "The ship left the harbour at dawn and nobody waved.",
]

found = Corroborator(sources)(outputs, k=2)
for output, supports in zip(outputs, found.supports):
    print(output)
    for s in supports:
        print(f"  {s.words:2d} words in a row: {s.passage!r}")
print(f"copied, {words} words or more: {found.verbatim(words)}")
