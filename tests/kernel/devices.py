"""A device's worker and what tests of the device ask of it."""

import os

from libmem.abi import calls as c
from libmem.abi.jobs import DropRequest, JobClass, LoadRequest, LoadResult
from libmem.abi.structs import TierName
from libmem.abi.wire import args_decoder, encode
from memosd.kernel.access import Identity
from tests.kernel.world import ROOT, Client, Pending, World

__all__ = ["DeviceWorker", "let_go", "on_device", "start"]

BOTH = (JobClass.DROP, JobClass.LOAD)
load_request = args_decoder(LoadRequest)
drop_request = args_decoder(DropRequest)


class DeviceWorker:
    """The process that owns the device, moved by a test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pid = world.device_workers.pids[-1]
        self.client = Client(world, Identity(ROOT, ROOT, self.pid))
        self.client.hello()
        self.frames: dict[bytes, bytes] = {}
        """What lies on an accelerator."""

    def take(self) -> c.JobReply:
        """The next job; id 0 when there is none."""
        return self.client.call(c.TakeJob(classes=BOTH))

    def work(self) -> list[JobClass]:
        """Do what there is to do; the classes of it, in order."""
        done = []
        while (job := self.take()).id:
            done.append(job.job_class)
            self.client.call(c.FinishJob(job.id, self.do(job)))
        return done

    def do(self, job: c.JobReply) -> bytes:
        """One job; its result's body."""
        if job.job_class is JobClass.DROP:
            for key in drop_request.decode(job.body).keys:
                self.frames.pop(key, None)
            return b""
        request = load_request.decode(job.body)
        reply = self.client.call(c.MapJob(request.key))
        sent = self.client.session.number, reply.handle
        fds = [self.world.gate.fds[sent], *self.world.gate.bases[sent]]
        content = os.pread(fds[0], request.size_bytes, 0)
        opening = b""
        if reply.descriptors == 2:
            os.pwrite(fds[1], content, 0)
        else:
            self.frames[request.key] = content
            opening = b"open " + request.key
        self.world.gate.close(*sent)
        self.client.call(c.MunmapCube(handle=reply.handle))
        return encode(LoadResult(opening))

    def die(self) -> None:
        """It is gone, reaped, and its session has ended."""
        self.world.device_workers.finish(self.pid)
        self.client.die()
        self.world.settle()


def start(user: Client, name: str) -> Pending:
    """Ask for a mapping on the device."""
    pending = user.start(c.MmapCube(name=name, tier=TierName.DEVICE))
    user.world.settle()
    return pending


def on_device(user: Client, worker: DeviceWorker, name: str) -> c.MapReply:
    """Map a cube there."""
    pending = start(user, name)
    worker.work()
    user.world.settle()
    reply: c.MapReply = pending.result()
    return reply


def let_go(user: Client, reply: c.MapReply) -> None:
    user.call(c.MunmapCube(handle=reply.handle))
