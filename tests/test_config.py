"""Task and method files."""

from __future__ import annotations

import pytest
import torch

from diffstategrad import DAPS, samplers
from diffstategrad.config import Task, load_task, tasks
from diffstategrad.operators import Downsample, GaussianBlur
from diffstategrad.samplers import method_options

GOOD = "description: d\noperator: {name: downsample, factor: 2}\nsigma: 0.05\n"


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", tasks())
def test_every_bundled_task_builds_and_measures(name):
    task = load_task(name)
    operator = task.build((256, 256))
    x = torch.zeros(1, 3, 256, 256)
    y = operator.measure(x, task.sigma)
    assert y.shape == (1, *operator.out_shape((3, 256, 256)))
    # noise of standard deviation sigma, known to 1 / sqrt(2 n); five of them
    noise = y - operator(x)
    assert abs(noise.std().item() / task.sigma - 1) < 5 / (2 * y.numel()) ** 0.5
    assert task.description


def test_the_tasks_of_the_papers_that_need_no_weights_are_bundled():
    assert tasks() == [
        "gaussian_deblur",
        "high_dynamic_range",
        "inpaint_box",
        "inpaint_random",
        "motion_deblur",
        "phase_retrieval",
        "super_resolution",
    ]


@pytest.mark.parametrize("method", samplers.methods())
@pytest.mark.parametrize("task", tasks())
def test_published_constants_are_options_of_the_method(method, task):
    options = method_options(method, task)
    sampler = samplers.sampler_class(method)(**options)
    assert options.items() <= sampler.model_dump().items()


@pytest.mark.parametrize("task", tasks())
@pytest.mark.parametrize("preset", ["2025", "official", "hmc", "exact"])
def test_presets_of_daps_are_options_of_it(preset, task):
    options = method_options("daps", task, preset=preset)
    assert options.items() <= DAPS(**options).model_dump().items()


def test_the_published_hamiltonian_constants_replace_those_of_langevin():
    options = method_options("daps", "inpaint_box", preset="hmc")
    assert options["dynamics"] == "hmc" and options["version"] == "2025"
    assert options["langevin_steps"] == 84 and options["momentum"] == 0.003
    assert options["tau"] == 0.01  # from the default


def test_constants_of_a_task_come_on_top_of_the_default():
    assert method_options("daps", "motion_deblur")["lr"] == 5e-5
    assert method_options("daps", "gaussian_deblur")["lr"] == 1e-4
    assert "lr" not in method_options("daps", "somebody's own")


def test_the_defaults_of_daps_are_the_published_ones_for_gaussian_deblurring():
    assert DAPS(**method_options("daps", "gaussian_deblur")) == DAPS()


def test_a_file_of_ones_own_loads(tmp_path):
    task = load_task(written(tmp_path, GOOD))
    assert task.sigma == 0.05
    assert isinstance(task.build(), Downsample) and task.build().factor == 2


def test_a_size_called_image_is_filled_in():
    task = load_task("inpaint_random")
    assert task.build((10, 12)).mask.shape == (1, 10, 12)
    with pytest.raises(ValueError, match="needs the size of the image"):
        task.build()


def test_a_task_is_frozen():
    task = Task(description="d", operator={"name": "gaussian_blur"}, sigma=0.1)
    assert isinstance(task.build(), GaussianBlur)
    with pytest.raises(ValueError, match="frozen"):
        task.sigma = 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "sigmaa: 1\n",
            r"mine.yaml: unknown key 'sigmaa'; did you mean 'sigma'",
        ),
        (GOOD + "3: 1\n", r"mine.yaml: unknown key 3"),
        (GOOD.replace("0.05", "-1"), r"mine.yaml: sigma: .*greater than 0"),
        (GOOD.replace("0.05", ".nan"), r"mine.yaml: sigma: "),
        (GOOD.replace("0.05", ".inf"), r"mine.yaml: sigma: .*finite"),
        (GOOD.replace("0.05", "a"), r"mine.yaml: sigma: .*number"),
        ("description: d\nsigma: 1\n", r"mine.yaml: operator: Field required"),
        (
            GOOD.replace("{name: downsample, factor: 2}", "blur"),
            r"mine.yaml: operator: ",
        ),
        ("- 1\n- 2\n", r"mine.yaml must hold keys and values"),
        ("", r"mine.yaml must hold keys and values"),
        ("a: [1, 2\n", r"mine.yaml is no YAML"),
        ("a: !!python/object:os.system {}\n", r"mine.yaml is no YAML"),
        ("\x00\x01", r"mine.yaml is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_task(written(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\xfa\xfb")
    with pytest.raises(ValueError, match=r"cannot read .*mine.yaml"):
        load_task(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*gone.yaml"):
        load_task(str(tmp_path / "gone.yaml"))


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gaussian_deblur'"):
        load_task("gausian_deblur")
    with pytest.raises(ValueError, match="did you mean 'daps'"):
        method_options("dap", "gaussian_deblur")


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("{name: downsampel}", "did you mean 'downsample'"),
        (
            "{name: downsample, faktor: 2}",
            "no option 'faktor'; did you mean",
        ),
        ("{name: downsample, factor: 0}", "factor must be an int >= 1, got 0"),
        ("{factor: 2}", "unknown operator None"),
    ],
)
def test_a_wrong_operator_is_named_when_it_is_built(tmp_path, operator, message):
    text = GOOD.replace("{name: downsample, factor: 2}", operator)
    with pytest.raises(ValueError, match=message):
        load_task(written(tmp_path, text)).build()
