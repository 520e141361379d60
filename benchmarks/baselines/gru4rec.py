"""GRU4Rec (Hidasi et al., ICLR 2016), with what its author found to matter (Hidasi & Czapp, RecSys 2023).

Items are read from the table that they are scored with ("constrained embedding"), dropout on the item vectors and on
the hidden state, cross-entropy over all items. Sessions here are whole histories; no item bias (the softmax over the
catalogue learns popularity in the vectors).

Shapes: B histories, L slots, P cuts, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.baselines.sequences import at_cuts, left_aligned


class GRU4Rec(nn.Module):
    """tokens [B, L, D], mask [B, L] -> [B, P, 1, D]; any L."""

    def __init__(self, width: int, length: int, layers: int = 1, dropout: float = 0.2, hidden_dropout: float = 0.0):
        from training.blocks import Dropout

        super().__init__()
        self.dropout, self.hidden_dropout = Dropout(dropout), Dropout(hidden_dropout)
        self.gru = nn.GRU(width, width, layers, batch_first=True, dropout=hidden_dropout if layers > 1 else 0.0)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight"):  # [3 D, D]: three matrices, each initialised by its own size
                for part in parameter.data.chunk(3):
                    nn.init.xavier_uniform_(part)
            else:
                nn.init.zeros_(parameter)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor, n_cuts: int) -> Tensor:
        # Padding last: the state starts at the first item, whatever stood before it.
        states_BLD, _ = self.gru(self.dropout(left_aligned(tokens_BLD, mask_BL)))
        return at_cuts(self.hidden_dropout(states_BLD), mask_BL, n_cuts).unsqueeze(2)
