"""The closed sets that every room uses: signals, pXTR heads, tasks, device states, and the null of each column."""

from __future__ import annotations

import numpy as np

# Feedback signals of one impression, in column order. Null (-1) means "not observed", never "no".
SIGNALS = (
    "click",
    "long_view",
    "like",
    "follow",
    "comment",
    "forward",
    "hate",
    "profile_enter",
    "finish",
)

# Heads of the server ranker, in the order of a page's pXTR columns (X).
PXTR_HEADS = ("click", "long_view", "like", "follow", "comment", "forward", "hate")
X_PXTR = len(PXTR_HEADS)

# Tasks of the on-device reranker, in the order of its score columns.
# watch_time is the watched share of WATCH_TIME_CAP_MS, trained as a soft label.
TASKS = ("effective_view", "like", "has_next", "watch_time")
WATCH_TIME_CAP_MS = 60_000

NETWORKS = ("unknown", "offline", "2g", "3g", "4g", "5g", "wifi")
DECODERS = ("unknown", "hardware", "software")

# A video has at most this many tags in a page, an event and a feature; the rest are cut in the log's order.
TAGS_MAX = 3

# Reserved key: "no id here". Never a real id, and the key of every table's default row.
MISSING_KEY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

NULL_INT = -1

# Added to attention logits where there is nothing to attend to. Not -1e9: a large mask sets the scale of a
# quantised attention and flattens it. Training masks with -1e9 all the same and bounds its logits, so that -30 is
# enough on the phone: with -30 a net learns to climb over the mask and reads later labels (docs/experiments.md).
MASK_VALUE = -30.0
