"""Training: it learns, stays what it was, and goes on after an interruption."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from memosd.drivers.parametric.controls import CONTROLS  # noqa: E402
from memosd.drivers.parametric.learner import Learner, Schedule  # noqa: E402
from memosd.drivers.parametric.lessons import Item, Probe  # noqa: E402
from memosd.drivers.parametric.match import TOP, divergence, match_of, sampled  # noqa: E402
from memosd.drivers.parametric.scores import exact_share, perplexity  # noqa: E402
from memosd.drivers.parametric.teaching import answers, imitation  # noqa: E402
from tests.libmem.hf.models import make_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ITEMS = [Item([5, 9, 11], [20, 21]), Item([6, 9, 12], [30, 31, 32]), Item([], [40, 41, 42])]
TEACHING = answers(ITEMS, 3, pad=0, seed=1)
SCHEDULE = Schedule(steps=12, learning_rate=2e-2, rank=4, keep=0.5, kept_rows=2, seed=1)


class Numbers:
    """A tokenizer of numbers between spaces."""

    bos_token_id = 1
    eos_token_id = None
    pad_token_id = 0

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(each) for each in text.split() if each.isdigit()] or [3]}

    def decode(self, ids: Any, **_options: Any) -> str:
        return " ".join(str(int(each)) for each in ids)


def sure_model() -> Any:
    """A random one hardly prefers any token, and no adapter below its head can change that."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def make_learner(model: Any, **changes: Any) -> Learner:
    kept = match_of(model, sampled(model, [1], (4, 12), 0))
    return Learner(model, TEACHING, kept, SCHEDULE._replace(**changes))


def weights(learner: Learner) -> list[Any]:
    return [each.detach().clone() for each in learner.adapted.parameters() if each.requires_grad]


def test_it_learns_and_gives_the_model_back() -> None:
    model, ids = sure_model(), torch.arange(8)[None] + 3
    plain = model(ids).logits
    learner = make_learner(model, steps=60)
    losses = []
    while not learner.is_done:
        losses.append(learner.advance())
    assert losses[-1] < 0.2 * losses[0]
    probes = [Probe("5 9 11", "20 21"), Probe("6 9 12", "30 31")]
    assert exact_share(learner.adapted, Numbers(), probes) == 1
    assert exact_share(learner.adapted, Numbers(), [*probes, Probe("5 9 11", "77")]) == 2 / 3
    learner.close()
    learner.close()
    assert torch.equal(model(ids).logits, plain)
    assert exact_share(model, Numbers(), probes) == 0


def test_it_imitates_what_another_predicts() -> None:
    teacher, model = make_model("llama", seed=1), make_model("llama")
    told = match_of(teacher, sampled(teacher, [1], (12, 10), 0))
    kept = match_of(model, sampled(model, [1], (4, 12), 0))
    schedule = SCHEDULE._replace(steps=60, keep=0.0)
    learner = Learner(model, imitation(told, 4, seed=0), kept, schedule)
    losses = []
    while not learner.is_done:
        losses.append(learner.advance())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_what_lies_before_counts() -> None:
    model = make_model("llama")
    whole = torch.tensor([[5, 6, 7, 20, 21, 22]] * 2)

    def past_of(rows: int) -> Any:
        with torch.no_grad():
            return model(whole[:rows, :3], use_cache=True).past_key_values

    behind = match_of(model, whole[:, 3:], past_of)
    plain = match_of(model, whole)
    torch.testing.assert_close(behind.logs, plain.logs[:, 3:])
    seen = sampled(model, [20, 21], (2, 6), 3, past_of)
    assert seen.shape == (2, 6)
    assert seen[:, :2].tolist() == [[20, 21]] * 2


def test_all_items_are_taught_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[Item] = []
    monkeypatch.setattr(
        "memosd.drivers.parametric.teaching._loss", lambda _model, items, _pad: taught.extend(items)
    )
    for step in range(4):
        answers(ITEMS, 3, pad=0, seed=1)(None, step)
    for turn in range(4):
        assert sorted(taught[3 * turn : 3 * turn + 3]) == sorted(ITEMS)


def test_what_it_is_held_to_it_keeps() -> None:
    strayed: list[float] = []
    for keep in (0.0, 5.0):
        model = make_model("llama")
        kept = match_of(model, sampled(model, [1], (4, 12), 0))
        learner = Learner(model, TEACHING, kept, SCHEDULE._replace(steps=40, keep=keep))
        while not learner.is_done:
            learner.advance()
        with torch.no_grad():
            logits = learner.adapted(input_ids=kept.ids).logits
        strayed.append(float(divergence(kept, logits)))
    assert strayed[1] < 0.5 * strayed[0]


def test_it_goes_on_as_if_it_had_not_been_interrupted() -> None:
    whole = make_learner(make_model("llama"))
    while not whole.is_done:
        whole.advance()
    first = make_learner(make_model("llama"))
    for _ in range(5):
        first.advance()
    state = {name: each.clone() for name, each in first.state().items()}
    second = make_learner(make_model("llama"))
    second.restore(state)
    assert second.step == 5
    while not second.is_done:
        second.advance()
    for one, other in zip(weights(whole), weights(second), strict=True):
        torch.testing.assert_close(one, other)


def test_a_state_of_another_training_is_refused() -> None:
    learner = make_learner(make_model("llama"))
    learner.advance()
    other = make_learner(make_model("llama"), rank=8)
    before = weights(other)
    for state in (learner.state(), {}, {**other.state(), "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match="of another training"):
            other.restore(state)
    assert all(torch.equal(*two) for two in zip(before, weights(other), strict=True))
    assert other.step == 0


def test_a_divergence_is_none_from_itself_and_some_from_others() -> None:
    model = make_model("llama")
    ids = sampled(model, [1], (3, 10), 0)
    match = match_of(model, ids)
    assert match.ids.shape == (3, 10)
    assert match.places.shape == (3, 10, min(TOP, 97))
    with torch.no_grad():
        own, others = model(ids).logits, make_model("llama", seed=1)(ids).logits
    assert float(divergence(match, own)) == pytest.approx(0, abs=1e-4)
    whole = own.log_softmax(-1)
    exact = (whole.exp() * (whole - others.log_softmax(-1))).sum(-1).mean()
    assert float(divergence(match, others)) == pytest.approx(float(exact), rel=0.05)


def test_samples_are_the_models_own() -> None:
    model = make_model("llama")
    one, same = (sampled(model, [1], (3, 10), 4) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, sampled(model, [1], (3, 10), 5))
    assert set(one[:, 0].tolist()) == {1}


def test_perplexity_is_of_all_tokens() -> None:
    model = make_model("llama")
    texts = ["3 4 5 6", "7 8 9"]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[int(each) for each in text.split()]])
        logs = model(ids).logits.log_softmax(-1)
        for place in range(ids.shape[1] - 1):
            total -= logs[0, place, ids[0, place + 1]].item()
            count += 1
    wanted = torch.tensor(total / count).exp()
    assert perplexity(model, Numbers(), texts) == pytest.approx(float(wanted), rel=1e-4)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert perplexity(model, Numbers(), texts) == float("inf")


def test_there_are_texts_that_nobody_is_trained_on() -> None:
    assert len(CONTROLS) >= 8
    assert all(len(each) > 200 for each in CONTROLS)
