"""The digest of the weights that runs start from."""

import torch

from experiments.start import weights_digest


def test_the_digest_is_that_of_names_and_values():
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert weights_digest(dict(reversed(weights.items()))) == weights_digest(weights)
    assert len(weights_digest(weights)) == 12
    nearly = torch.nextafter(weights["b"], torch.tensor(4.0))
    others = ({**weights, "b": nearly}, {"a": weights["a"], "c": weights["b"]}, {"a": weights["a"]})
    assert len({weights_digest(one) for one in (weights, *others)}) == 4
