"""Several processes for one pass over images, by Lightning's launcher."""

from datetime import timedelta

from commands.options import PassOptions
from lwta.dissect.stream import Share
from lwta.errors import InputError


def launch(device: str, options: PassOptions) -> tuple[Share, str]:
    """Start the processes asked for; what each of them does, and on which device.

    From here on the command runs in all of them; where ``torchrun`` started them, in those.
    """
    if options.devices < 1 or options.num_nodes < 1:
        raise InputError("devices and num_nodes are at least 1")
    if options.devices == options.num_nodes == 1:
        return Share(), device
    from lightning.fabric import Fabric  # takes seconds to import, and one process needs none of it
    from lightning.fabric.strategies import DDPStrategy

    kind = device.partition(":")[0]
    fabric = Fabric(
        accelerator={"cuda": "gpu"}.get(kind, kind),
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=DDPStrategy(timeout=timedelta(days=7)),  # one process may embed words for an hour
    )
    fabric.launch()

    def barrier() -> None:
        try:
            fabric.barrier()
        except RuntimeError as error:  # the connection to a process that has ended
            raise InputError("another process of this pass has stopped; it says why itself") from error

    return Share(fabric.global_rank, fabric.world_size, barrier), str(fabric.device)
