import io

from rich.console import Console

from vtune_jax.machine.progress import Progress, _clock, _Meter


def said(ticks, *, names=(), terminal=False, **options):
    stream = io.StringIO()
    progress = Progress(stream=stream, **options)
    if terminal:
        progress._console = Console(file=stream, force_terminal=True, width=120)
    with progress.bar("arm", 100, names=names) as tick:
        for done, fields in ticks:
            tick(done, fields)
    return stream.getvalue()


def test_without_a_terminal_it_prints_a_line_at_the_end_and_seldom_before():
    ticks = [(10, {"loss": 3.0 - done / 100, "tokens": 100 * done}) for done in range(1, 11)]
    lines = said(ticks, line_every_s=1000).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("  arm 100/100  loss 2.900")
    assert "tokens/s" in lines[0]
    lines = said(ticks, line_every_s=0).splitlines()
    assert len(lines) == 10
    assert all(line.endswith("0:00 left") for line in lines[1:-1])
    assert not lines[-1].endswith("left")


def test_time_left_follows_the_mean_speed_after_the_first_chunk(monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    meter = _Meter(())
    monkeypatch.setattr("vtune_jax.machine.progress.time.monotonic", lambda: next(clock))
    assert [meter.seconds_left(done, 1000) for done in (10, 20, 40)] == [None, 980.0, 960.0]
    assert [_clock(seconds) for seconds in (59.6, 61, 3725)] == ["1:00", "1:01", "1:02:05"]


def test_the_largest_weights_are_named():
    line = said([(100, {"loss": 1.0, "weights": [0.1, 0.6, 0.25, 0.05]})], names=("a", "b", "c", "d"))
    assert "b 60% c 25% a 10%" in line


def test_a_terminal_gets_a_bar_with_status():
    text = said([(50, {"loss": 2.5, "tokens": 10}), (50, {"loss": 2.0, "tokens": 20})], terminal=True)
    assert "100/100" in text
    assert "loss 2.000" in text


def test_a_bar_says_compiling_until_the_first_tick_with_fields():
    begun = said([], terminal=True)
    assert "compiling" in begun
    resumed = said([(50, {})], terminal=True)
    assert "50/100" in resumed
    assert "compiling" in resumed.split("50/100")[-1]
    trained = said([(50, {}), (10, {"loss": 2.5})], terminal=True)
    assert "compiling" not in trained.split("60/100")[-1]
    assert said([(50, {})], line_every_s=0) == "  arm 50/100  compiling\n"


def test_time_left_of_a_resumed_run_leaves_out_its_compilation(monkeypatch):
    now = 0.0
    monkeypatch.setattr("vtune_jax.machine.progress.time.monotonic", lambda: now)

    def ticks():
        nonlocal now
        yield 50, {}
        now = 1000.0  # it compiled
        yield 10, {"loss": 3.0}
        now = 1010.0  # 10 steps took 10 seconds, 30 more are left
        yield 10, {"loss": 3.0}

    lines = said(ticks(), line_every_s=0).splitlines()
    assert lines == ["  arm 50/100  compiling", "  arm 60/100  loss 3.000", "  arm 70/100  loss 3.000  0:30 left"]


def test_a_bar_of_bytes_compiles_nothing():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress._console = Console(file=stream, force_terminal=True, width=120)
    with progress.megabytes("reading [a]", 3_000_000) as advance:
        advance(1_500_000, 3_000_000)
        advance(1_500_000, 3_000_000)
    assert "compiling" not in stream.getvalue()
    assert "reading [a], MB" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_silence_is_silent_but_for_notes():
    stream = io.StringIO()
    progress = Progress(stream=stream, silent=True)
    progress.stage("x", "y")
    with progress.bar("arm", 10) as tick:
        tick(10, {"loss": 1.0})
    assert stream.getvalue() == ""
    progress.note("a [note]")
    assert stream.getvalue() == "  a [note]\n"
