"""Ray: what listens, workers and nodes that die, bits, memory, addresses. One cluster serves the whole file."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest
from tests.engine_cases import Late, Network, alive, bits, grid, in_waves, values

from lowland.core import errors
from lowland.core.errors import EngineError, InputError, MissingExtra
from lowland.engine import Ray, Serial, select
from lowland.engine import ray as module
from lowland.engine.scheduler import AHEAD, Scheduler
from lowland.engine.sockets import listening


@pytest.fixture(scope="module")
def cluster():
    """The cluster that the first run starts; ends with the module."""
    yield
    sys.modules["ray"].shutdown()


def test_names():
    assert select("ray").name == "ray" and select("ray:3").asked == 3
    assert select("ray://head:10001").address == "ray://head:10001"


@pytest.mark.parametrize("address", ["ray://", "ray://host", "ray://host:0", "ray://host:99999", "ray://a b:1", "host"])
def test_addresses_that_are_none(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        Ray(address)


def test_an_address_where_nothing_listens_fails_soon_and_names_it(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(EngineError, match=rf"ray://127.0.0.1:{port} .*refused.*processes:N"):
        values(Ray(f"ray://127.0.0.1:{port}"), Network(), grid(2))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(EngineError, match=f"127.0.0.1:{port}"):
        values(Ray(), Network(), grid(2))


def test_without_ray(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r'pip install "lowland\[ray\]"'):
        values(Ray(), Network(), grid(2))


def test_bad_numbers():
    for number in (0, True, 1.5):
        with pytest.raises(InputError, match="workers"):
            Ray(workers=number)


def test_versions_that_differ_are_named():
    here, there = {"torch": "2.13", "numpy": "2.0"}, {"torch": "2.6", "numpy": "2.0"}
    assert "torch (2.13 here, 2.6 there)" in module._difference(here, there)


def test_a_worker_of_another_version_does_not_begin():
    kind, text = module._Actor().place(b"never unpacked", 1, {**module._versions(), "torch": "1.0"})
    assert kind == "refused" and f"torch (1.0 here, {module._versions()['torch']} there)" in text


def test_sockets_of_this_process_are_listed():
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        lines = listening()
        assert any(line.endswith(f" 127.0.0.1:{four.getsockname()[1]}") for line in lines)
        assert any(line.endswith(f" ::1:{six.getsockname()[1]}") for line in lines)
    assert not any(f":{four.getsockname()[1]}" in line for line in listening())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 1, 2])
def test_the_same_bits_as_one_process_alone(workers, cluster, caplog):
    with caplog.at_level(logging.INFO, "lowland.engine.ray"):
        found = in_waves(Ray(workers=workers, threads=1), Network(), grid(30), chunk=3)
    assert bits(found) == bits(in_waves(Serial(), Network(), grid(30))) and len(bits(found)) == 30
    assert {result.value["threads"] for result in found.values()} == {1}


@pytest.mark.slow
def test_only_loopback_listens_and_a_token_is_asked_for(cluster):
    values(Ray(workers=1, threads=1), Network(), grid(2))
    lines = [line for line in listening() if "ray" in line or "gcs" in line]
    assert len(lines) >= 4
    assert {line.split()[-1].rpartition(":")[0] for line in lines} == {"127.0.0.1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    address = sys.modules["ray"].get_runtime_context().gcs_address
    words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    variables = {**os.environ, "RAY_AUTH_TOKEN": "not the token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "AuthenticationError" in done.stderr


def actors():
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_Actor")]


@pytest.mark.slow
def test_workers_killed_at_random(cluster):
    todo, rng, task = grid(200), random.Random(1), Network(seconds=0.1)
    killed, done, stop = [], {}, threading.Event()

    def kill():
        seen = 0  # results at the last kill: workers that only ever die at their start end a run, and shall
        while len(killed) < 5 and not stop.wait(rng.uniform(0.2, 1.0)):
            if len(done) > seen and (living := [p for p in actors() if p.pid not in killed]):
                seen = len(done)
                killed.append(rng.choice(living).pid)
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        for result in Ray(workers=2, threads=1).map(task.setup, task, Late(todo, {}), chunk=3):
            assert result.index not in done
            done[result.index] = result
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 5
    assert bits(done) == bits(values(Serial(), Network(), todo))


@pytest.mark.slow
def test_an_item_that_kills_its_worker_is_given_up_alone(cluster):
    found = values(Ray(workers=2, threads=1), Network(kills=(7,)), grid(11), chunk=4)
    assert [i for i, result in found.items() if result.failed] == [7]
    assert "was lost" in found[7].error and "4 times" in found[7].error and found[7].traceback


class Counting(Scheduler):
    """Counts the chunks that are out."""

    out = most = 0

    def take(self, *state):
        chunk = super().take(*state)
        Counting.out += bool(chunk)
        Counting.most = max(Counting.most, Counting.out)
        return chunk

    def finished(self, count):
        Counting.out -= 1
        super().finished(count)


@pytest.mark.slow
def test_ten_thousand_items_leave_the_driver_s_memory_flat_and_no_backlog(cluster, monkeypatch):
    monkeypatch.setattr("lowland.engine.pool.Scheduler", Counting)
    process, sizes, count = psutil.Process(), [], 0
    task, items = Network(carry=2500), Late(grid(10_000), {}, 1250)  # 100 MB each way if all were kept
    for _ in Ray(workers=2, threads=1).map(task.setup, task, items, chunk=8):
        count += 1
        if len(sizes) < count // 1000:
            sizes.append(process.memory_info().rss)
    assert count == 10_000
    # after the first half, in which Ray's and the allocator's own pools fill; keeping all would add 50 MB
    assert sizes[-1] - sizes[4] < 12.5e6
    assert 0 < Counting.most <= AHEAD * 2


_DRIVER = """
    import sys, time, logging
    from contextlib import contextmanager
    from lowland.engine import Ray

    @contextmanager
    def setup():
        yield

    def slow(context, items):
        time.sleep(0.2)
        return items

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for result in Ray(workers=1).map(setup, slow, [float(i) for i in range(1000)]):
        print(result.value, flush=True)
"""


def start_driver(tmp_path):
    (tmp_path / "driver.py").write_text(textwrap.dedent(_DRIVER))
    words = [sys.executable, str(tmp_path / "driver.py")]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout.readline().strip() == "0.0"
    return driver, {p.pid: p.name() for p in psutil.Process(driver.pid).children(recursive=True)}


def gone(family, seconds, besides=()):
    """Wait for the end of processes; end those that are named, which Ray itself ends a minute or two later."""
    deadline = time.monotonic() + seconds
    expected = [number for number, name in family.items() if name not in besides]
    while any(map(alive, expected)) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = {number: family[number] for number in expected if alive(number)}
    for number in filter(alive, family):
        os.kill(number, signal.SIGKILL)
    return found == {}


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # they try for long to tell the lost cluster of their end


@pytest.mark.slow
def test_ctrl_c_ends_within_five_seconds_without_stray_processes(tmp_path):
    driver, family = start_driver(tmp_path)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=5)
    assert "KeyboardInterrupt" in stderr and gone(family, 5)
    assert "listens on" in stderr and "127.0.0.1:" in stderr  # the driver has said so at the start


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_process_behind(tmp_path):
    driver, family = start_driver(tmp_path)
    driver.kill()
    driver.communicate()
    assert gone(family, 30, AGENTS)


@pytest.mark.slow
def test_a_node_that_is_lost_ends_the_run_with_an_error_and_a_new_run_works(tmp_path):
    driver, family = start_driver(tmp_path)
    os.kill(next(number for number, name in family.items() if name == "raylet"), signal.SIGKILL)
    _, stderr = driver.communicate(timeout=100)
    assert "EngineError: the Ray cluster was lost; finished points are kept" in stderr
    assert gone(family, 10, AGENTS)
    again, family = start_driver(tmp_path)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=20)
    assert gone(family, 10)


@pytest.mark.slow
def test_a_cluster_by_its_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        head, client = one.getsockname()[1], two.getsockname()[1]
    variables = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    variables.pop("RAY_ADDRESS", None)
    variables["PYTHONPATH"] = os.getcwd()  # what a user sends along as Ray's working directory
    words = ["start", "--head", "--block", f"--port={head}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    words += ["--include-dashboard=false", f"--temp-dir=/tmp/ray_{os.getpid()}"]
    node = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words], env=variables, stdout=subprocess.PIPE
    )
    code = "from lowland.engine import *; from tests.engine_cases import *; import sys\n"
    code += "print(len(values(select(sys.argv[1]), Network(), grid(12))))"
    try:
        _until_open(client)
        for address, given in ((f"ray://127.0.0.1:{client}", {}), ("ray", {"RAY_ADDRESS": f"127.0.0.1:{head}"})):
            words = [sys.executable, "-c", code, address]
            done = subprocess.run(words, env={**variables, **given}, capture_output=True, text=True, timeout=120)
            assert done.stdout.split()[-1:] == ["12"], done.stderr
    finally:
        family = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        node.wait(30)
        for process in family:
            if alive(process.pid):
                process.kill()


def _until_open(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.3)
