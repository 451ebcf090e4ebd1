"""A program of its own: times ONNX files with ONNX Runtime, interleaved, and prints one JSON line.

It runs in a fresh process on this machine, on a board reached by ssh, or under qemu; it needs Python 3.8+, numpy and
onnxruntime there and nothing of this project. Usage:

    python3 ort_program.py '{"models": ["a.onnx"], "threads": 1, "iterations": 50, "warmup": 5, "batch": 1}'

With "outputs": PATH it also saves the outputs of the first run of every model as a .npz file.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,var-annotated"
import json
import platform
import sys
import time


def memory_kb(field):
    """A field of /proc/self/status in kB, or None."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


def device_name():
    """What this machine calls itself."""
    for path in ("/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                name = file.read().strip().strip("\0")
            if name:
                return name + " (" + platform.machine() + ")"
        except OSError:
            continue
    return platform.node() + " (" + platform.machine() + ")"


def open_model(path, task):
    """(session, feed) with seeded inputs."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=[task.get("provider", "CPUExecutionProvider")])
    types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    generator = numpy.random.RandomState(0)
    feed = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else task["batch"] for size in value.shape]
        if value.type in types:
            feed[value.name] = generator.standard_normal(shape).astype(types[value.type])
        else:
            feed[value.name] = numpy.ones(shape, value.type[7:-1].replace("bool", "bool_"))
    return session, feed


def describe(times, load_ms, before_kb, after_kb):
    """One model's figures."""
    ordered = sorted(times)
    pick = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {
        "min_ms": ordered[0],
        "median_ms": pick(0.5),
        "p90_ms": pick(0.9),
        "load_ms": load_ms,
        "peak_rss_mb": (after_kb - before_kb) / 1024 if after_kb and before_kb else None,
        "iterations": len(ordered),
    }


def main(task):
    """Load all models, warm up, run them in turn, print the line."""
    import numpy
    import onnxruntime

    opened, loads, memory = [], [], []
    for path in task["models"]:
        before, begin = memory_kb("VmRSS"), time.perf_counter()
        opened.append(open_model(path, task))
        loads.append((time.perf_counter() - begin) * 1e3)
        memory.append((before, memory_kb("VmHWM")))
    if task.get("outputs"):
        results = {}
        for index, (session, feed) in enumerate(opened):
            for name, value in zip([v.name for v in session.get_outputs()], session.run(None, feed)):  # noqa: B905
                results[str(index) + "/" + name] = value
        numpy.savez(task["outputs"], **results)
    for session, feed in opened:
        for _ in range(task["warmup"]):
            session.run(None, feed)
    times = [[] for _ in opened]
    for round_number in range(task["iterations"]):
        order = list(range(len(opened)))
        for index in reversed(order) if round_number % 2 else order:
            session, feed = opened[index]
            begin = time.perf_counter()
            session.run(None, feed)
            times[index].append((time.perf_counter() - begin) * 1e3)
    rows = [
        describe(series, load, *kilobytes) if series else {"load_ms": load, "iterations": 0}
        for series, load, kilobytes in zip(times, loads, memory)  # noqa: B905
    ]
    line = {
        "device": device_name(),
        "runtime": "onnxruntime " + onnxruntime.__version__,
        "threads": task["threads"],
        "models": rows,
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
