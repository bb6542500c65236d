"""Prints what Kubernetes needs for a job: python -m scratchnet kubernetes --image IMAGE --machines 4 -- train ...

kubectl apply takes the output. `--kind dockerfile` prints a Dockerfile for the image. See docs/clusters.md.
"""

import sys
from dataclasses import dataclass

from scratchnet.flags import flag, run_script
from scratchnet.parallel.clusters.kubernetes import DOCKERFILE, KINDS, Plan, text_of


@dataclass
class Config:
    """Print manifests for Kubernetes; the command of the job follows after --."""

    image: str = flag("", "the image of the pods")
    machines: int = flag(2, "pods")
    ranks: int = flag(1, "ranks of each pod")
    kind: str = flag("job", "what to print", [*KINDS, "dockerfile"])
    name: str = flag("scratchnet", "of the job")
    cpus: str = flag("1", "of each pod")
    memory: str = flag("2Gi", "of each pod")
    claim: str = flag("", "PersistentVolumeClaim for checkpoints")
    folder: str = flag("/run/scratchnet", "where the claim is mounted")


def main(config: Config) -> None:
    if config.kind == "dockerfile":
        sys.stdout.write(DOCKERFILE)
        return
    own = {name: value for name, value in vars(config).items() if name != "kind"}
    sys.stdout.write(text_of(KINDS[config.kind](Plan(words=tuple(WORDS), **own))))


SPLIT = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
WORDS = sys.argv[SPLIT + 1 :]

if __name__ == "__main__":
    del sys.argv[SPLIT:]
    run_script(main, Config)
