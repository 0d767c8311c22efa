"""The model card of a merged folder with a head: its facts in, the text of README.md out."""

from fedmask.merged.facts import MergedFacts

_CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [fedmask]
{front}---

# {base}, fine-tuned by fedmask, with a head for {task}

| | |
| --- | --- |
| base model | `{base}`, parameters of SHA-256 `{digest}` |
| run | {run} |
| task | `{task}`: {kind} |
| texts | {texts}, cut to {max_length} tokens |

The weights are those of the base model but for a few entries that were trained over many clients; the folder loads as
the base model does. The head, one linear layer over the mean of the last hidden states, is in a file of its own,
`fedmask_head.safetensors`.

## How to load it

With fedmask, whose `scores` gives what its call decides by:

```python
import fedmask

classifier = fedmask.load_classifier("FOLDER")
classifier({example})
classifier.scores({example})
```

With transformers alone, which runs the folder's own `modeling_fedmask.py`:

```python
from transformers import AutoModelForSequenceClassification, pipeline

pipeline("text-classification", "FOLDER", trust_remote_code=True)({piped})
AutoModelForSequenceClassification.from_pretrained("FOLDER", trust_remote_code=True)
```

**Not without `trust_remote_code=True`**: `AutoModelForSequenceClassification` would then take a head of random numbers.
`AutoModel.from_pretrained("FOLDER")` gives the encoder alone; who tokenizes by hand cuts texts to {max_length} tokens:
`tokenizer(texts, truncation=True, max_length={max_length})`.

## Licence

That of the base model.
"""


def model_card(facts: MergedFacts, labels: tuple[str, ...] | None) -> str:
    """labels: by class index; None for a regression."""
    if labels is None:
        kind = "a number"
    else:
        kind = ", ".join(f"`{label}`" for label in labels).replace("|", "\\|").replace("\n", " ")
    is_on_hub = facts.base_name.count("/") == 1
    return _CARD.format(
        front=f"base_model: {facts.base_name}\n" if is_on_hub else "",
        base=facts.base_name,
        digest=facts.base_digest,
        run="not told" if facts.run is None else f"`{facts.run}`",
        task=facts.task,
        kind=kind,
        texts={True: "pairs", False: "single", None: "as its task has them"}[facts.pairs],
        max_length=facts.max_length,
        example='[("a text", "another")]' if facts.pairs else '["a text"]',
        piped='{"text": "a text", "text_pair": "another"}' if facts.pairs else '"a text"',
    )
