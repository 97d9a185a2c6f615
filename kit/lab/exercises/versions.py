"""Votes of several versions: the answer of a quorum, the faults that two share, and what independence would give."""
from collections.abc import Iterator

import torch
from torch import Tensor

from kit.diverse import independent_vote, majority
from kit.lab.checks import Case, exercise


def vote_cases(g: torch.Generator) -> Iterator[Case]:
    split = torch.tensor([[0, 1, 2, 3, 4], [2, 2, 1, 1, 0], [1, 3, 1, 3, 3], [4, 4, 4, 4, 4], [3, 0, 0, 0, 0]])
    for quorum in (3, 4):
        yield torch.cat([split, torch.randint(3, (30, 5), generator=g)]), quorum


def plurality(said: Tensor, most: bool = True) -> Tensor:
    counts = torch.nn.functional.one_hot(said, 5).sum(1)
    return counts.argmax(1) if most else counts.amax(1)


exercise(
    "majority-vote",
    "majority_vote(said, quorum) -> (N,), the class that at least `quorum` of the versions (N, n) name, −1 for none",
    majority, vote_cases,
    [
        ("no abstention", lambda said, quorum: plurality(said),
         ["yours always answers.", "−1 where the largest number of votes is below the quorum."]),
        ("more than the quorum", lambda said, quorum: torch.where(plurality(said, False) > quorum, plurality(said), -1),
         ["yours abstains where exactly `quorum` agree.", "at least: ≥, not >."]),
        ("all must agree", lambda said, quorum: torch.where(plurality(said, False) == said.shape[1], said[:, 0], -1),
         ["yours asks for all of them.", "count the versions that name a class, and compare with `quorum`."]),
        ("the first version", lambda said, quorum: said[:, 0].clone(),
         ["yours repeats what the first version says.", "one_hot(said).sum(1) counts the votes for each class."]),
        ("sign error", lambda said, quorum: torch.where(plurality(said, False) < quorum, plurality(said), -1),
         ["yours answers where it should abstain, and the other way round.", "answer where the votes are ≥ quorum."]),
        ("the first version or none",
         lambda said, quorum: torch.where((said == said[:, :1]).sum(1) >= quorum, said[:, 0], -1),
         ["yours asks only whether others agree with the first version.",
          "the quorum may be among the others: count for every class."]),
    ],
)


def fault_cases(g: torch.Generator) -> Iterator[Case]:
    for rates in ((0.5, 0.2), (0.3, 0.6)):
        y = torch.randint(4, (200,), generator=g)
        shared = torch.rand(200, generator=g)  # a part of the faults comes from the image
        said = []
        for rate in rates:
            own = torch.rand(200, generator=g)
            wrong = (0.5 * own + 0.5 * shared) < rate
            said.append(torch.where(wrong, (y + torch.randint(1, 4, (200,), generator=g)) % 4, y))
        yield said[0], said[1], y


def rate(event: Tensor) -> Tensor:
    return event.double().mean()


def fault_ratio(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return rate((a != y) & (b != y)) / (rate(a != y) * rate(b != y))


exercise(
    "fault-ratio",
    "fault_ratio(a, b, y) -> a number: how often two versions, which say a and b (N,), are wrong at once, over what "
    "independent faults would give",
    fault_ratio, fault_cases,
    [
        ("no-op", lambda a, b, y: torch.tensor(1.0),
         ["yours says that all faults are independent.", "rate(both wrong) / (rate(a wrong) · rate(b wrong))."]),
        ("agreement for faults", lambda a, b, y: rate(a == b) / (rate(a == y) * rate(b == y)),
         ["versions that are both right agree as well.", "count where both differ from y."]),
        ("only the same answer", lambda a, b, y: rate((a == b) & (a != y)) / (rate(a != y) * rate(b != y)),
         ["two versions may be wrong with two answers.", "(a != y) & (b != y), whatever they say."]),
        ("upside down", lambda a, b, y: 1 / fault_ratio(a, b, y),
         ["yours falls where more faults are shared.", "observed over expected."]),
        ("mean for product", lambda a, b, y: rate((a != y) & (b != y)) / (rate(a != y) / 2 + rate(b != y) / 2),
         ["yours cannot be above 1.", "independent events: the rates are multiplied."]),
        ("square of the mean",
         lambda a, b, y: rate((a != y) & (b != y)) / (rate(a != y) / 2 + rate(b != y) / 2).square(),
         ["your two versions have one error rate.", "q_a · q_b, not the square of their mean."]),
    ],
)


def rate_cases(g: torch.Generator) -> Iterator[Case]:
    for n, quorum in ((3, 2), (4, 3), (5, 3)):
        yield (0.05 + 0.4 * torch.rand(n, generator=g)).tolist(), quorum


exercise(
    "independent-vote",
    "independent_vote(errors, quorum) -> the probability that at least `quorum` of independent versions are wrong",
    independent_vote, rate_cases,
    [
        ("no-op", lambda errors, quorum: sum(errors) / len(errors),
         ["that is one version's error, on average.", "how many of them are wrong is a sum of independent draws."]),
        ("exactly the quorum", lambda errors, quorum: independent_vote(errors, quorum)
         - (independent_vote(errors, quorum + 1) if quorum < len(errors) else 0.0),
         ["more than the quorum may be wrong, too.", "sum over quorum, quorum + 1, …, n wrong versions."]),
        ("one rate for all", lambda errors, quorum: independent_vote([sum(errors) / len(errors)] * len(errors), quorum),
         ["your versions all have the mean error.", "convolve [1 − q, q] over the versions, each with its own q."]),
        ("sign error", lambda errors, quorum: 1 - independent_vote(errors, quorum),
         ["yours is the probability that the vote is not wrong.", "count the wrong ones, from the quorum upwards."]),
        ("all wrong", lambda errors, quorum: float(torch.tensor(errors, dtype=torch.float64).prod()),
         ["yours asks that all are wrong.", "the quorum is enough."]),
    ],
)
