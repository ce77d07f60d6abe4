"""Data of pages, as ``collect`` would read it from records of seeded, invented runs."""

import math
import random

MADE_AT = "2026-11-30T01:20:00+00:00"
HOSTILE = "</script><script>alert(1)</script><!-- \"'{{ 7 * 7 }} \u2028 ${1} \ud800"


def position(step, *, steps_per_epoch=100, seconds_per_step=0.4):
    seconds = seconds_per_step * step
    return {
        "step": step,
        "epoch": step / steps_per_epoch,
        "iteration": 4 * step,
        "seconds": seconds,
        "time": f"2026-11-29T{int(seconds // 3600) % 24:02}:{int(seconds // 60) % 60:02}:00+00:00",
    }


def curve(metric, steps, values, *, is_validation=False, spread=None, **where):
    """Returns a curve; each point stands for ten reports if a ``spread`` is given."""
    places = [position(step, **where) for step in steps]
    mean = [value if value is not None and math.isfinite(value) else None for value in values]
    is_thinned = spread is not None
    band = (
        [None if each is None else spread * (abs(each) + 0.01) for each in mean]
        if is_thinned
        else []
    )
    return {
        "metric": metric,
        "is_validation": is_validation,
        "step": [each["step"] for each in places],
        "epoch": [each["epoch"] for each in places],
        "seconds": [each["seconds"] for each in places],
        "mean": mean,
        "low": [None if m is None else m - b for m, b in zip(mean, band, strict=True)]
        if is_thinned
        else None,
        "high": [None if m is None else m + b for m, b in zip(mean, band, strict=True)]
        if is_thinned
        else None,
        "count": [10] * len(mean) if is_thinned else None,
        "lost": [index for index, value in enumerate(mean) if value is None],
    }


def summary(curve, best=None):
    values = [(v, s) for v, s in zip(curve["mean"], curve["step"], strict=True) if v is not None]

    def extreme(choose):
        if not values:
            return None
        value, step = choose(values)
        return {"value": value, "at": position(step)}

    return {
        "metric": curve["metric"],
        "last": curve["mean"][-1],
        "lowest": extreme(min),
        "highest": extreme(max),
        "best": best,
        "reports": sum(curve["count"] or [1] * len(curve["mean"])),
        "not_finite": len(curve["lost"]),
    }


def panel(title, metrics, section="metrics", unit=None):
    return {"title": title, "section": section, "unit": unit, "metrics": metrics}


PANELS = [
    panel("loss", ["loss", "val_loss"]),
    panel("val_accuracy", ["val_accuracy"]),
    panel("lr", ["lr"], "optimization"),
    panel("grad_norm", ["grad_norm"], "optimization"),
    panel("samples_per_second", ["samples_per_second"], "speed", "1/s"),
    panel("data_wait", ["data_wait"], "speed"),
    panel("max_ram_mib", ["max_ram_mib"], "memory", "MiB"),
]


SHARES = {
    "data": 0.392,
    "backward": 0.211,
    "forward": 0.148,
    "validation": 0.112,
    "optimizer": 0.058,
    "checkpoint": 0.031,
    "handlers/MeanLoss": 0.019,
    "other": 0.016,
    "handlers/Console": 0.012,
    "gc": 0.001,
}


def run(label="runs/digits", *, seed=0, steps=2000, rate=1e-3, state="finished", **changes):
    """Returns a run on small images; ``changes`` replaces keys."""
    generator = random.Random(seed)
    noise = generator.gauss
    reports = sorted({*range(max(1, steps // 800), steps + 1, max(1, steps // 800)), steps})
    validations = range(100, steps + 1, 100)

    def fall(step, floor):
        return floor + 2.2 * math.exp(-step * rate * 4) + 0.15 * math.exp(-step * rate)

    curves = [
        curve(
            "loss",
            reports,
            [fall(s, 0.08) * (1 + 0.12 * noise(0, 1)) for s in reports],
            spread=0.15,
        ),
        curve(
            "lr",
            reports,
            [rate * min(1, s / 200) * 0.5 * (1 + math.cos(math.pi * s / steps)) for s in reports],
        ),
        curve(
            "grad_norm",
            reports,
            [abs(0.4 + 0.2 * noise(0, 1)) + 3 * math.exp(-s / 150) for s in reports],
            spread=0.3,
        ),
        curve("samples_per_second", reports, [5200 + 180 * noise(0, 1) for _ in reports]),
        curve("data_wait", reports, [abs(0.12 + 0.03 * noise(0, 1)) for _ in reports]),
        curve(
            "max_ram_mib", validations, [1480 + 60 * (1 - math.exp(-s / 500)) for s in validations]
        ),
        curve(
            "val_loss",
            validations,
            [fall(s, 0.13) + 0.00004 * s * rate * 300 + 0.01 * noise(0, 1) for s in validations],
            is_validation=True,
        ),
        curve(
            "val_accuracy",
            validations,
            [0.97 - 0.5 * math.exp(-s / 300) + 0.004 * noise(0, 1) for s in validations],
            is_validation=True,
        ),
    ]
    curves = [each for each in curves if each["step"]]
    best = {"loss": "lowest", "val_loss": "lowest", "val_accuracy": "highest"}
    checkpoints = [
        {
            "path": f"/home/ada/experiments/{label}/step_{step:08}",
            "at": position(step),
            "metric": "val_accuracy",
            "value": 0.94 + 0.00001 * step,
            "is_best": step == 1600,
            "is_there": step >= 1600,
        }
        for step in range(400, steps + 1, 400)
    ]
    marks = [
        *(mark("validation", f"validation {n}", step) for n, step in enumerate(validations, 1)),
        *(mark("checkpoint", each["path"], each["at"]["step"]) for each in checkpoints),
        *(
            mark("skip", "the loss scaler skipped a step", step)
            for step in (3, 9, 41)
            if step < steps
        ),
    ]
    if steps >= 1200:
        marks += [
            mark("stop", "stopped: SIGTERM", 1200),
            mark("resume", "resumed from step 1,200", 1200),
        ]
    if state == "finished":
        marks.append(mark("stop", "stopped: max_epochs", steps))
    made = {
        "label": label,
        "path": f"/home/ada/experiments/{label}/metrics.jsonl",
        "problem": None,
        "notes": [],
        "status": status(state, f"finished at step {steps:,}: max_epochs", 1.0),
        "started": "2026-11-28T23:59:00+00:00",
        "at": position(steps),
        "summaries": [summary(each, best.get(each["metric"])) for each in curves],
        "curves": curves,
        "marks": sorted(marks, key=lambda each: each["at"]["step"]),
        "times": {
            "parts": [{"name": name, "share": share} for name, share in SHARES.items()],
            "advice": "data: 39% of the time. `num_workers` of the DataLoader is 0, so this "
            "process prepares each batch itself: set `num_workers` to 2 or more.",
            "background": {"checkpoint": 4.31},
        },
        "growth": [],
        "checkpoints": checkpoints,
        "resumes": [RESUME] if steps >= 1200 else [],
        "failure": None,
        "settings": {
            "seed": 7,
            "precision": "bf16",
            "model/class": "ResNet",
            "model/parameters": 11_173_962,
            "optimizer/class": "AdamW",
            "optimizer/lr": rate,
            "optimizer/betas": "[0.9, 0.999]",
            "optimizer/weight_decay": 0.01,
            "lr_scheduler/class": "OneCycleLR",
            "limits/max_epochs": 20,
            "limits/max_steps": None,
            "handlers/MeanLoss/every_steps": 5,
            "handlers/SaveCheckpoint/every_steps": 400,
            "handlers/SaveCheckpoint/metric": "val_accuracy",
        },
        "versions": {
            "python": "3.12.1",
            "torch": "2.13.0",
            "pytorch-ignite": "0.5.5",
            "accelerate": "1.15.0",
            "ignite-hooks": "0.1.0",
        },
        "machine": {
            "host": "gpu-07",
            "cpus": 64,
            "process": 4711,
            "device": "cuda:0",
            "device_name": "NVIDIA H200",
            "processes": 1,
        },
        "command": ["python", "train.py", "--lr", str(rate), "--name", "digits, the first"],
        "folder": "/home/ada/experiments",
    }
    return made | changes


def mark(kind, text, step, count=1):
    return {"kind": kind, "text": text, "at": position(step), "count": count}


RESUME = {
    "at": position(1200),
    "checkpoint": "/home/ada/experiments/runs/digits/step_00001200",
    "exact": False,
    "parts": [
        {
            "name": "data",
            "level": "approximate",
            "reason": "a stream without a state is iterated again",
        },
        {"name": "model", "level": "exact", "reason": None},
        {"name": "optimizer", "level": "exact", "reason": None},
    ],
    "cut_lines": 14,
    "cut_end": "SIGTERM",
}
GROWTH = [
    {
        "class": "tensors [16, 10] float32 on cpu",
        "classes": {"tensors [16, 10] float32 on cpu": 1000.0, "resident memory": 3.1 * 2**20},
        "step": 1800,
        "since_step": 400,
        "chain": "train.losses[1273].grad_fn",
        "holder": "train.losses",
        "holder_is": "a list of 1,274 items",
        "ram_bytes_per_1000_steps": 3.1 * 2**20,
        "seconds_left": 9300.0,
        "limit": "memory",
    }
]
FAILURE = {
    "type": "torch.OutOfMemoryError",
    "message": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "139.81 GiB of which 1.31 GiB is free.",
    "traceback": """Traceback (most recent call last):
  File "/home/ada/experiments/train.py", line 81, in <module>
    trainer.run(max_epochs=20)
  File "/home/ada/experiments/model.py", line 40, in forward
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + self.bias[:, :, :size]
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
""",
    "at": position(1873),
}


def page(*runs, panels=PANELS, differences=()):
    return {
        "made_at": MADE_AT,
        "runs": list(runs),
        "panels": panels,
        "differences": list(differences),
    }


def status(state, text, done=None, seconds_left=None):
    return {"state": state, "text": text, "done": done, "seconds_left": seconds_left}


def usual():
    return page(run())


def in_progress():
    at = position(1240) | {"time": "2026-11-30T01:19:40+00:00"}
    text = "in progress"
    return page(run(steps=1240, status=status("running", text, 0.62, 3912.0), at=at, growth=GROWTH))


def quiet():
    at = position(1240) | {"time": "2026-11-30T00:02:00+00:00"}
    return page(run(steps=1240, status=status("running", "in progress", 0.62, 3912.0), at=at))


def failed():
    made = run(
        steps=1873,
        status=status("failed", "failed at step 1,873: torch.OutOfMemoryError"),
        failure=FAILURE,
    )
    made["marks"].append(mark("error", "torch.OutOfMemoryError", 1873))
    made["notes"] = ["2 damaged lines were left out."]
    return page(made)


EMPTY = {
    "status": status("empty", "no reports yet"),
    "summaries": [],
    "curves": [],
    "marks": [],
    "times": None,
    "checkpoints": [],
    "resumes": [],
    "settings": {},
    "versions": {},
    "machine": {},
    "command": [],
    "folder": None,
    "at": None,
    "started": None,
}


def empty():
    return page(run(**EMPTY), panels=[])


def missing():
    problem = "No such file: /home/ada/runs/a/metrics.jsonl. Give the path of a record."
    return page(run(**EMPTY, problem=problem), panels=[])


def one_step():
    return page(
        run(steps=1, status=status("finished", "finished at step 1: max_steps")),
        panels=[each for each in PANELS if each["title"] not in ("val_accuracy", "max_ram_mib")],
    )


def forty():
    made = run()
    names = [f"val/{kind}/class_{number:02}" for kind in ("f1", "recall") for number in range(20)]
    steps = [*range(2, 2001, 2)]
    for number, name in enumerate(names):
        generator = random.Random(number)
        values = [
            0.9 - 0.6 * math.exp(-s / (100 + 20 * number)) + 0.02 * generator.gauss(0, 1)
            for s in steps
        ]
        made["curves"].append(curve(name, steps, values, is_validation=True))
        made["summaries"].append(summary(made["curves"][-1], "highest"))
    return page(made, panels=[*PANELS[:2], *(panel(name, [name]) for name in names), *PANELS[2:]])


def not_finite():
    made = run()
    for each in made["curves"]:
        if each["metric"] in ("loss", "grad_norm"):
            for index in [*range(300, 340), 500]:
                for key in ("mean", "low", "high"):
                    each[key][index] = None
                each["lost"].append(index)
    made["summaries"] = [
        summary(each, "lowest" if "loss" in each["metric"] else None) for each in made["curves"]
    ]
    return page(made)


def several(count):
    rates = [1e-3 * 2 ** (number / 2 - 1) for number in range(count)]
    runs = [
        run(f"sweep/lr_{rate:.2g}", seed=number, rate=rate) for number, rate in enumerate(rates)
    ]
    if count > 2:
        runs[2] = run(
            "sweep/failed",
            seed=2,
            rate=rates[2],
            steps=1300,
            status=status("failed", "failed at step 1,300: ValueError"),
            failure=FAILURE,
        )
    differences = [
        {"name": "optimizer/lr", "values": rates},
        {"name": "optimizer/betas", "values": ["[0.9, 0.999]"] * (count - 1) + ["[0.9, 0.95]"]},
        {"name": "handlers/EMAHandler", "values": ["attached", *[None] * (count - 1)]},
    ]
    return page(*runs, differences=differences)


def long_names():
    long = f"validation/of_the_translated_test_set/with_{'a_very_' * 9}long_name/bleu_score"
    made = run(f"experiments/2026/november/{'all_of_its_hyperparameters_' * 4}lr=0.0003_wd=0.01")
    made["curves"].append(
        curve(long, range(100, 2001, 100), [0.1 + n / 40 for n in range(20)], is_validation=True)
    )
    made["summaries"].append(summary(made["curves"][-1], "highest"))
    made["settings"] |= {
        f"model/config/layers/{n}/attention/heads/{'very_' * 8}long": "word " * 60
        for n in range(60)
    }
    made["settings"] |= {"data/files": "/data/" + "x" * 900}
    return page(made, panels=[*PANELS, panel(long, [long], unit="tokens per second and device")])


def extreme_numbers():
    made = run()
    found = {
        "huge": [1e308, -1e308, 1.7e308],
        "tiny": [1e-320, 5e-324, 2e-310],
        "constant": [5.0] * 20,
        "zeros": [0.0] * 20,
        "negative": [-1e-5 * n for n in range(20)],
        "lost": [None] * 20,
        "single": [3.0],
    }
    for name, values in found.items():
        made["curves"].append(curve(name, range(100, 100 * len(values) + 1, 100), values))
        made["summaries"].append(summary(made["curves"][-1], "lowest"))
    return page(made, panels=[*PANELS, *(panel(name, [name]) for name in found)])


def narrow():
    """Returns a page of a run with many steps, and with values that hardly change."""
    steps = range(3_000_000, 3_002_000, 20)
    found = {
        "steady": [2.434 + 1e-4 * math.sin(s / 100) for s in steps],
        "tokens": [3e9 + s for s in steps],
        "small": [3e-5 + 1e-9 * math.sin(s / 100) for s in steps],
        "rounded": [2.43435 + 1e-7 * (s % 3) for s in steps],
    }
    curves = [curve(name, steps, values) for name, values in found.items()]
    made = run() | {
        "curves": curves,
        "summaries": [summary(each, "lowest") for each in curves],
        "marks": [],
        "at": position(steps[-1]),
    }
    return page(made, panels=[panel(name, [name]) for name in found])


def hostile():
    made = run(
        HOSTILE,
        path=HOSTILE,
        notes=[HOSTILE],
        command=["python", HOSTILE],
        folder=HOSTILE,
        failure=FAILURE | {"message": HOSTILE, "traceback": HOSTILE, "type": HOSTILE},
    )
    panels = list(PANELS)
    for name in (HOSTILE, "__proto__", "constructor", ""):
        made["curves"].append(curve(name, range(100, 2001, 100), [n / 20 for n in range(20)]))
        made["summaries"].append(summary(made["curves"][-1], "highest"))
        panels.append(panel(name, [name], unit=HOSTILE))
    made["settings"] |= {HOSTILE: HOSTILE, "__proto__/x": "y"}
    made["marks"].append(mark("error", HOSTILE, 700))
    made["times"]["parts"][0]["name"] = HOSTILE
    made["checkpoints"][-1] |= {"path": HOSTILE, "metric": HOSTILE, "is_best": True}
    made["growth"] = [GROWTH[0] | {"class": HOSTILE, "chain": HOSTILE, "classes": {HOSTILE: 1.0}}]
    made["resumes"] = [
        RESUME
        | {
            "checkpoint": HOSTILE,
            "cut_end": HOSTILE,
            "parts": [{"name": HOSTILE, "level": HOSTILE, "reason": HOSTILE}],
        }
    ]
    return page(made, panels=panels)


CASES = {
    "usual": usual,
    "in_progress": in_progress,
    "quiet": quiet,
    "failed": failed,
    "empty": empty,
    "missing": missing,
    "one_step": one_step,
    "extreme_numbers": extreme_numbers,
    "narrow": narrow,
    "forty": forty,
    "not_finite": not_finite,
    "three_runs": lambda: several(3),
    "nine_runs": lambda: several(9),
    "long_names": long_names,
    "hostile": hostile,
    "no_runs": lambda: page(panels=[]),
}
