"""Length traces and the simulated engine."""

import random

import pytest

from varattn.trace import EXCERPTS, PageAllocator, Request, Simulator, TraceError, read_trace


def random_requests(rng, count=60):
    return [Request(rng.randint(1, 900), rng.randint(1, 40)) for _ in range(count)]


@pytest.mark.parametrize("name", EXCERPTS)
def test_excerpts_are_readable(name):
    requests = read_trace(EXCERPTS[name])
    assert len(requests) == 400
    assert all(r.prompt >= 1 and r.generated >= 1 for r in requests)
    assert len(read_trace(EXCERPTS[name], limit=7)) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "no column ContextTokens or GeneratedTokens; .* found: none"),
        ("TIMESTAMP,ContextTokens\nt,3\n", "no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nt,3,4\nt,x,4\n", "line 3: ContextTokens: got 'x'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nt,3,0\n", "line 2: GeneratedTokens: got '0'; takes"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nt,3\n", "line 2: GeneratedTokens: got None"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nt,99999999999,1\n", "line 2: ContextTokens: got '99999999999'"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_binary_and_folder_are_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    for bad in (path, tmp_path):
        with pytest.raises(TraceError, match=str(bad)):
            read_trace(bad)


@pytest.mark.parametrize("tokens_per_decode", [1, 4])
def test_every_token_is_computed_once_on_pages_of_its_own(tokens_per_decode, seed):
    rng = random.Random(seed)
    requests = random_requests(rng)
    page_size, budget, max_running = rng.choice([1, 3, 16]), rng.randint(64, 512), rng.randint(1, 16)
    simulator = Simulator(
        requests,
        max_running=max_running,
        token_budget=budget,
        page_size=page_size,
        tokens_per_decode=tokens_per_decode,
        seed=seed,
    )
    done = [0] * len(requests)
    pages_of = {}
    for step in simulator:
        assert 0 < step.prefill_tokens + step.decode_tokens <= budget
        assert len(step.chunks) <= max_running
        kinds = [c.is_prefill for c in step.chunks]
        assert kinds == sorted(kinds), "decodes come first"
        for c in step.chunks:
            request = requests[c.request]
            assert c.kv_len == done[c.request] + c.q_len
            assert c.is_prefill == (done[c.request] < request.prompt)
            assert not c.is_prefill or c.kv_len <= request.prompt, "a prefill stops at the end of its prompt"
            assert c.is_prefill or c.q_len <= tokens_per_decode
            done[c.request] = c.kv_len
            known = pages_of.setdefault(c.request, c.pages)
            assert c.pages[: len(known)] == known, "pages of a sequence do not move"
            pages_of[c.request] = c.pages
            assert len(c.pages) == -(-c.kv_len // page_size)
        in_use = [page for pages in pages_of.values() for page in pages]
        assert len(in_use) == len(set(in_use)), "a page has one owner"
        assert all(0 <= page < simulator.num_pages for page in in_use)
        for page in step.released:
            assert page in in_use
        pages_of = {i: p for i, p in pages_of.items() if done[i] < requests[i].kv_len}
    assert done == [r.kv_len for r in requests]
    assert not pages_of


def test_budget_is_filled_while_requests_wait():
    requests = [Request(1000, 5)] * 50
    steps = list(Simulator(requests, max_running=20, token_budget=256))
    waiting = [s for s in steps if max(c.request for c in s.chunks) < len(requests) - 1]
    assert waiting
    assert all(s.prefill_tokens + s.decode_tokens == 256 for s in waiting)


def test_admission_waits_for_pages():
    requests = [Request(64, 2)] * 10
    simulator = Simulator(requests, max_running=10, token_budget=1024, page_size=16, num_pages=11)  # room for two
    assert max(len(s.chunks) for s in simulator) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_running=0), "max_running: got 0"),
        (dict(page_size=0), "page_size: got 0"),
        (dict(tokens_per_decode=0), "tokens_per_decode: got 0"),
        (dict(max_running=128, token_budget=100), "token_budget: got 100; takes at least .* 128 x 1"),
        (dict(num_pages=3), "num_pages: got 3; takes at least 7"),
    ],
)
def test_simulator_refuses(arguments, message):
    with pytest.raises(TraceError, match=message):
        Simulator([Request(100, 5)], **arguments)


def test_allocator_keeps_reservations():
    pages = PageAllocator(8)
    assert pages.reserve(5)
    assert not pages.reserve(4)
    taken = [pages.take_reserved() for _ in range(5)]
    assert pages.num_available == 3
    pages.release(taken)
    assert pages.reserve(8)
