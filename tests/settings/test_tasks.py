from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS


def test_glue_tasks_are_in_glues_order():
    assert GLUE_TASKS == ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    assert set(TASKS) == {*GLUE_TASKS, "demo", "squad_v2"}


def test_hyperparameters_are_those_of_the_design():
    recommended = {
        name: (task.finetune_lr, task.batch_size, task.max_length) for name, task in TASKS.items()
    }
    assert recommended == {
        "mnli": (1e-5, 32, 128),
        "qnli": (1e-5, 32, 128),
        "qqp": (1e-5, 32, 128),
        "rte": (2e-5, 16, 250),
        "wnli": (2e-5, 16, 250),
        "sst2": (2e-5, 32, 128),
        "mrpc": (2e-5, 32, 128),
        "cola": (2e-5, 16, 128),
        "stsb": (2e-5, 16, 128),
        "demo": (2e-5, 32, 64),
        "squad_v2": (2e-5, 16, 384),
    }


def test_num_labels():
    num_labels = {name: task.num_labels for name, task in TASKS.items()}
    assert num_labels == dict.fromkeys(TASKS, 2) | {"mnli": 3, "stsb": 1}


def test_headline_metrics():
    headlines = {name: task.metrics[0] for name, task in TASKS.items()}
    others = {"cola": "matthews", "stsb": "pearson", "squad_v2": "exact"}
    assert headlines == dict.fromkeys(TASKS, "accuracy") | others


def test_mnli_has_two_validation_splits():
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")
