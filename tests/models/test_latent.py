import torch

from loss.kl import VAEKLLoss
from models.heads import Seen
from models.heads.latent import LatentHead

D, V, TOLD, Z = 6, 9, 10, 3
TOKENS = torch.tensor([[1, 4, 5, 0, 0], [1, 6, 0, 0, 0], [1, 7, 8, 4, 2]])
IMAGE_OF = torch.tensor([0, 1, 1])


def head() -> LatentHead:
    """One that has learned to tell something."""
    torch.manual_seed(0)
    model = LatentHead(D, V, TOLD, width=8, size=Z, dropout=0.5)
    torch.nn.init.uniform_(model.tell.weight, -(Z**-0.5), Z**-0.5)
    return model


def test_at_first_the_decoder_is_told_nothing_and_learns_what_to_hear() -> None:
    model = LatentHead(D, V, TOLD, width=8, size=Z, dropout=0.5)
    told = model(Seen(torch.randn(2, 4, D), TOKENS, IMAGE_OF))["told"]
    assert not told.any()
    told.sum().backward()
    assert model.tell.weight.grad is not None and model.tell.weight.grad.any()


def test_padding_changes_no_code_and_each_caption_has_its_image() -> None:
    model, features = head().eval(), torch.randn(2, 4, D)
    out = model(Seen(features, TOKENS, IMAGE_OF))
    assert {out[key].shape for key in model.gives} == {(3, Z)} and out["told"].shape == (3, TOLD)
    for p, length in enumerate((3, 2, 5)):
        alone = model(Seen(features[IMAGE_OF[p], None], TOKENS[p : p + 1, :length], torch.tensor([0])))
        for key, value in alone.items():
            # sums in another order, float32
            torch.testing.assert_close(out[key][p], value[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(out["prior_mu"][1], out["prior_mu"][2]) and not torch.equal(out["mu"][1], out["mu"][2])


def test_without_drawing_the_decoder_is_told_what_the_image_calls_for() -> None:
    model, features = head().eval(), torch.randn(2, 4, D)
    told = model(Seen(features, TOKENS, IMAGE_OF))["told"]
    torch.testing.assert_close(told, model.draw(features)[IMAGE_OF])


def test_in_training_the_code_is_of_the_caption_and_only_vae_kl_teaches_the_prior() -> None:
    model, features = head().train(), torch.randn(1, 4, D)
    model.dropout.p = 0.0
    times = 2000
    out = model(Seen(features, TOKENS[2:].repeat(times, 1), torch.zeros(times, dtype=torch.long)))
    # the mean of 2000 draws of deviation about 1, through weights below 1: three of its deviations
    torch.testing.assert_close(out["told"].mean(0), model.tell(out["mu"][0]), rtol=0, atol=0.07)
    assert out["told"].std(0).min() > 0.1
    out["told"].sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {"prior.weight", "prior.bias"}


def test_draws_are_of_the_prior_at_their_temperature() -> None:
    model, features = head().eval(), torch.randn(1, 4, D)
    torch.nn.init.eye_(model.tell.weight)  # told is the code itself, and zeros
    out = model(Seen(features, TOKENS[:1], torch.tensor([0])))
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 2.0):
        draws = model.draw(features.expand(20_000, -1, -1), temperature, generator)[:, :Z]
        deviation = temperature * torch.exp(out["prior_logvar"][0] / 2)
        # a mean of 20,000 draws lies within 4 / sqrt(20,000) = 0.03 of their deviations, which is known to 0.5 %
        assert ((draws.mean(0) - out["prior_mu"][0]).abs() < 0.03 * deviation).all()
        torch.testing.assert_close(draws.std(0), deviation, rtol=0.03, atol=0)
    one, other = (model.draw(features, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(one, other)


def test_a_posterior_that_ignores_the_caption_costs_nothing() -> None:
    model, features = head().eval(), torch.randn(2, 4, D)
    with torch.no_grad():
        model.posterior.weight.copy_(torch.cat([model.prior.weight, torch.zeros_like(model.prior.weight)], 1))
        model.posterior.bias.copy_(model.prior.bias)
    out = model(Seen(features, TOKENS, IMAGE_OF))
    assert VAEKLLoss()(*(out[key] for key in model.gives)).abs() < 1e-9  # float32: the two are summed differently
