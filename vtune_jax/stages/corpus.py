"""The corpus: its documents as token files, and what runs read of them."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.core.priors import unimax_weights
from vtune_jax.data.corpora.config import CorpusConfig, corpus_fingerprint
from vtune_jax.data.corpora.prepare import prepare
from vtune_jax.data.mixture.config import MixtureConfig
from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.data.tokens.streams import Streams, heldout_rows
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.store import Finished


@dataclasses.dataclass(frozen=True)
class CorpusInputs:
    """What the token files depend on."""

    fingerprint: dict[str, Any]  # the corpus' config and the content of every source
    prior: tuple[Any, ...]  # the mixture that the tokenizer's training text is taken in; () for a given tokenizer
    config: CorpusConfig = dataclasses.field(metadata={"bookkeeping": True})  # where the sources lie
    mixture: MixtureConfig = dataclasses.field(metadata={"bookkeeping": True})  # gives the prior


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Token files of all domains, and what the runs of an experiment read of them."""

    stage: Finished
    prepared: PreparedCorpus
    domains: Streams  # training and held-out rows of the domains, and how often they may be read
    base: Streams  # of the base domain
    tokens: np.ndarray  # training tokens of each domain
    prior: np.ndarray  # reference weights, float64

    @property
    def names(self) -> tuple[str, ...]:
        """The domains, in the order of every array."""
        return self.prepared.names

    @property
    def unlimited(self) -> Streams:
        """The rows of the domains without limits: those of the real run do not apply to short runs."""
        return dataclasses.replace(self.domains, limits=(), stop=())


def prepare_corpus(session: Session) -> Finished:
    """The token files: `tokenizer.json`, tokens of both sides and `manifest.json`."""
    config, mixture = session.config.corpus, session.config.mixture
    fingerprint = corpus_fingerprint(config, session.store.hashed)
    prior = () if config.tokenizer.file else (mixture.weights, mixture.power, mixture.unimax_epochs)
    inputs = CorpusInputs(fingerprint, prior, config, mixture)
    return session.stage("corpus", "corpus", inputs, _prepare, purpose="corpora to tokens", trains=False)


def open_corpus(session: Session, stage: Finished) -> Corpus:
    """The rows of a prepared corpus as this experiment reads them.

    Raises:
        UserError: a domain with too few rows, or limits that leave fewer rows than the run reads.
    """
    config, prepared = session.config, PreparedCorpus.open(stage.folder)
    tokens = np.array([len(prepared.domain(name).train) for name in prepared.names])
    return Corpus(
        stage=stage,
        prepared=prepared,
        domains=_limited(config, _streams(config, prepared, prepared.names)),
        base=_streams(config, prepared, (prepared.base_name,)),
        tokens=tokens,
        prior=_prior(config, tokens, session.progress.note),
    )


def _prepare(inputs: CorpusInputs, folder: Path, tools: Tools) -> None:
    with ExitStack() as stack:
        bars: dict[str, Callable[[int, int], None]] = {}

        def advance(title: str, done: int, total: int) -> None:
            if title not in bars:
                bars[title] = stack.enter_context(tools.progress.megabytes(title, total))
            bars[title](done, total)

        prepare(
            inputs.config,
            folder,
            prior=inputs.mixture.prior,
            report=tools.progress.note,
            advance=advance,
            engine=tools.work_engine,
        )


def _streams(config: ExperimentConfig, prepared: PreparedCorpus, names: tuple[str, ...]) -> Streams:
    data = config.data
    domains = [prepared.domain(name, patience=data.patience_seconds) for name in names]
    stores = tuple(data.rows_of(domain.train, prepared.end_of_text) for domain in domains)
    heldout = [
        heldout_rows(data.rows_of(domain.heldout, prepared.end_of_text), data.heldout_rows, domain.name)
        for domain in domains
    ]
    stacked = {name: np.stack([rows[name] for rows in heldout]) for name in heldout[0]}
    return Streams(stores=stores, heldout=stacked)


def _limited(config: ExperimentConfig, streams: Streams) -> Streams:
    """The streams with the limits of their domains."""
    domains = config.corpus.domains
    if all(domain.exhaustion == "repeat" for domain in domains):
        return streams
    limits = tuple(domain.limit(int(rows)) for domain, rows in zip(domains, streams.rows, strict=True))
    asked = config.train.steps * config.data.batch
    if None not in limits and (most := sum(filter(None, limits))) < asked:
        raise UserError(
            f"train.steps = {config.train.steps} reads {asked:,} rows, and the domains may give {most:,}",
            (f"set train.steps to at most {steps}, " if (steps := most // config.data.batch) else "")
            + "raise max_epochs, or let a domain repeat",
        )
    return dataclasses.replace(streams, limits=limits, stop=tuple(domain.exhaustion == "stop" for domain in domains))


def _prior(config: ExperimentConfig, tokens: np.ndarray, note: Callable[[str], None]) -> np.ndarray:
    budget = config.train.steps * config.data.batch_tokens
    if epochs := config.mixture.unimax_epochs:
        unspent = unimax_weights(tokens, budget, epochs)[1]
        if unspent:
            note(
                f"UniMax: {unspent:,.0f} of {budget:,} tokens cannot be spent within {epochs:g} epochs; "
                "every domain is read more often"
            )
    return config.mixture.prior(tokens, budget)
