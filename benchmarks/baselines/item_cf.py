"""Item-based collaborative filtering (Sarwar et al. 2001): who liked these liked those.

Neighbours come from `implicit` (C++ for sparse top-K products, alive, wheels for NumPy 2): cosine, TF-IDF or BM25
similarity of items by who liked them in training. A history's score of an item is the sum of its items' similarities,
newer ones counting more: twice as much for every `half_life` items.

Shapes: B histories, L slots, N items, U users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.recipe import Recipe
from contract.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from training.retrieval_split import RetrievalSplit

Ids = NDArray[np.int64]
SIMILARITIES = ("cosine", "tfidf", "bm25")


class ItemCF:
    """Neighbours of the items in the history.

    similarity  cosine; tfidf: cosine with users who like much counting less; bm25
    neighbours  kept per item
    half_life   in items; None = all of the history counts alike
    length      the history's last so many items
    """

    name = "item-cf"

    def __init__(
        self,
        split: RetrievalSplit,
        *,
        similarity: str = "cosine",
        neighbours: int = 200,
        half_life: float | None = None,
        length: int = 200,
    ):
        if similarity not in SIMILARITIES:
            raise InputError("unknown similarity of item-cf", got=similarity, allowed=SIMILARITIES)
        if neighbours < 1 or length < 1 or (half_life is not None and half_life <= 0):
            raise InputError("item-cf: sizes start at 1", got=(neighbours, length, half_life))
        self.length = length
        age_L = np.arange(length - 1, -1, -1)
        self._weight_L = np.ones(length) if half_life is None else 0.5 ** (age_L / half_life)
        self._similar_NN = similarities(user_items(split), similarity, neighbours)
        counts_N = split.counts()
        self._popularity_N = counts_N / max(1, counts_N.max(initial=0))

    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> NDArray[np.float32]:
        """float32 [B, N], higher is better; items that are no one's neighbour follow in the order of popularity."""
        from scipy.sparse import csr_array

        length = min(self.length, split.history)
        rows_BL = split.history_rows(user, end, length)
        query, slot = np.nonzero(rows_BL >= 0)
        weights = self._weight_L[self.length - length :][slot]
        shape = (len(user), split.n_items)
        history_BN = csr_array((weights, (query, rows_BL[query, slot])), shape=shape)
        scores_BN = (history_BN @ self._similar_NN).toarray()
        # Popularity breaks ties at 0 and stays below every score that says something.
        least_B1 = np.where(scores_BN > 0, scores_BN, np.inf).min(axis=1, initial=1.0, keepdims=True)
        found: NDArray[np.float32] = np.where(scores_BN > 0, scores_BN, 0.5 * least_B1 * self._popularity_N)
        return found.astype(np.float32)


def make_item_cf(split: RetrievalSplit, recipe: Recipe) -> ItemCF:
    """With a recipe's settings. Raises InputError for settings that item-cf does not have."""
    try:
        return ItemCF(split, **recipe.model)
    except TypeError as error:
        raise InputError("not settings of item-cf", got=str(error)) from None


def user_items(split: RetrievalSplit) -> Any:
    """What each user liked in training, once each: sparse float64 [U, N]."""
    from scipy.sparse import csr_matrix

    places = split.train_places()
    places = places[split.row_P[places] >= 0]
    user = np.searchsorted(split.index.offsets, places, side="right") - 1
    shape = (len(split.index.user_id), split.n_items)
    found = csr_matrix((np.ones(len(places)), (user, split.row_P[places])), shape=shape)
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


def similarities(liked_UN: Any, similarity: str, neighbours: int) -> Any:
    """Sparse [N, N]: row i holds item i's nearest neighbours, itself left out."""
    from scipy.sparse import diags_array

    try:
        from implicit import nearest_neighbours as nearest
    except ModuleNotFoundError:
        raise MissingExtra("implicit", "bench") from None
    liked_NU = liked_UN.T
    weights = {
        "cosine": nearest.normalize(liked_NU),
        "tfidf": nearest.normalize(nearest.tfidf_weight(liked_NU)),
        "bm25": nearest.bm25_weight(liked_NU, K1=1.2, B=0.75),
    }[similarity]
    # Not CosineRecommender and its sisters: they do just this, with a warning about their own sparse format.
    model = nearest.ItemItemRecommender(K=neighbours + 1, num_threads=1)  # one more: an item is nearest to itself
    model.fit(weights.T.tocsr(), show_progress=False)
    similar_NN = model.similarity - diags_array(model.similarity.diagonal(), format="csr")
    similar_NN.eliminate_zeros()
    return similar_NN
