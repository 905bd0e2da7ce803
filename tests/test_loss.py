"""What a loop of one's own may ask of the loss."""

import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.errors import InputError
from models.loss import training_loss

X, TARGET = torch.ones(2, 8), torch.tensor([0, 1])


def test_terms_and_layers_that_are_not_there_are_refused():
    sparse, dense = nn.Sequential(LWTA(4, -1, noise=0.0), nn.Linear(8, 2)), nn.Linear(8, 2)
    with pytest.raises(InputError, match="no term entropy; its terms are kl, usage_entropy"):
        training_loss(sparse, X, TARGET, {"0": -1}, 0.1, {"entropy": -1.0})
    for model, dims in ((sparse, {}), (dense, {}), (sparse, {"1": -1})):
        with pytest.raises(InputError, match="kl need competing units; none of dims competes"):
            training_loss(model, X, TARGET, dims, 0.1, {"kl": 1.0})
    loss, terms = training_loss(sparse, X, TARGET, {"0": -1}, 0.1, {"kl": 1.0, "usage_entropy": 0.0})
    plain, none = training_loss(sparse, X, TARGET, {}, 0.1, {"usage_entropy": 0.0})
    assert none == {}
    torch.testing.assert_close(loss, plain + terms["kl"])
