"""A study whose runs take no time, in this process and in the workers that it starts."""
import killing

from experiments import runner, studies

ARMS = ("full", "random-0.3-from-start", "margin-0.3", "puma-0.3")
run_arm = runner.run_arm


def add(arms=ARMS, attack="pgd", also=""):
    """Make an experiment `puma` of these arms."""
    settings = dict(dataset="synthetic", limit=200, epochs=2)
    studies.SETUPS["tiny"] = studies.Setup(settings, attack, also)
    studies.EXPERIMENTS["puma"] = (studies.Part("tiny", arms, 1, 5),)


def run_in_a_worker(run, data_dir, jobs):
    """runner.run_arm, in a process that does not know the study yet."""
    add()
    return run_arm(run, data_dir, jobs)


def command(argv, log):
    """The body of a process: `python -m experiments` with these words."""
    add()
    runner.run_arm = run_in_a_worker
    killing.script("experiments.__main__", argv, log)
