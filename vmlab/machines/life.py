"""Machines are started, stopped, paused."""

from __future__ import annotations

import contextlib
import time

from vmlab.engine import load
from vmlab.engine.domain import domain_of
from vmlab.errors import AgentTimeout, VMLabError, WaitTimeout, WrongState
from vmlab.guest import agent
from vmlab.hypervisor.domain import Domain, Events
from vmlab.machines import identity, move
from vmlab.machines.hold import hold
from vmlab.machines.room import need_memory
from vmlab.records import MachineRecord
from vmlab.store.store import Store

#: Seconds after which an agent that was not there is asked again, and a power button is pressed again.
ASK_AGAIN, PRESS_AGAIN = 1.0, 5.0


def start(store: Store, name: str, *, boot: bool, force: bool) -> None:
    """Start a machine; see :meth:`vmlab.Machine.start`."""
    with hold(store, name, "start") as (record, domain):
        state = domain.state()
        if state == "running":
            return
        if state in ("paused", "asleep"):
            domain.resume()
            return
        if state == "crashed":
            domain.destroy()
        if boot or record.continues is None:
            _boot(store, record, domain, force=force)
            return
        snapshot = store.snapshot(record.continues)
        load.check(store, snapshot)
        need_memory(store, record.spec, mapped=True, force=force)
        move.arrive(store, record, domain, snapshot, paused=snapshot.state != "running")
        tells = identity.begin(store, record, snapshot)
    if tells:
        identity.give(store, record, snapshot, "then")


def _boot(store: Store, record: MachineRecord, domain: Domain, *, force: bool) -> None:
    need_memory(store, record.spec, mapped=False, force=force)
    # Once the disk has been written to, RAM from before must never meet it again.
    left = record.continues
    _leave_state(store, record)
    if left:
        store.save_machine(record)
    try:
        load.boot(store, record, domain)
    except VMLabError:
        record.continues = left
        store.save_machine(record)
        raise
    store.save_machine(record)


def _leave_state(store: Store, record: MachineRecord) -> None:
    """Let a machine that is to continue a state boot from its disks instead, with that state's firmware variables."""
    if record.continues is not None:
        # A damaged one cannot say that it has some.
        with contextlib.suppress(VMLabError):
            record.nvram = record.continues if store.snapshot(record.continues).nvram else record.nvram
    record.mapped = record.continues = None


def stop(store: Store, name: str, timeout: float) -> None:
    """Shut a guest down cleanly and wait until it is off; see :meth:`vmlab.Machine.stop`."""
    with hold(store, name, "stop") as (record, domain):
        state = domain.state()
        if state == "off":
            return
        if state == "crashed":
            domain.destroy()
        else:
            if state in ("paused", "asleep"):
                domain.resume()
            domain.shutdown()
            end, again = time.monotonic() + timeout, time.monotonic() + PRESS_AGAIN
            while domain.is_active():
                if time.monotonic() > again:
                    # A guest that was just started has not heard.
                    with contextlib.suppress(VMLabError):
                        domain.shutdown()
                    again = time.monotonic() + PRESS_AGAIN
                if time.monotonic() > end:
                    raise WaitTimeout(
                        f"{name} did not power off within {timeout:.0f} s.",
                        hint="a guest without agent or ACPI cannot be asked: "
                        f"`%vm kill {name}` ends it at once",
                    )
                time.sleep(0.05)
        _leave_state(store, record)
        store.save_machine(record)


#: Seconds that the agent of a guest which should have one is waited for before the power button is pressed instead.
AGENT_FIRST = 30.0


def reboot(store: Store, name: str, *, hard: bool, timeout: float) -> None:
    """Restart a guest and wait until its agent answers again; see :meth:`vmlab.Machine.reboot`."""
    identity.settle(name)
    end = time.monotonic() + timeout
    with hold(store, name, "reboot") as (record, domain):
        found = domain.condition()
        if found.state != "running":
            raise WrongState(found.sentence(name), hint=found.way_out(name))
        with domain.events() as events:
            if hard:
                domain.reset()
            _restarted(domain, events, end, asked=hard, has_agent=record.spec.agent, timeout=timeout)
    if record.spec.agent:
        agent.wait_for_agent(domain_of(store, name), max(end - time.monotonic(), 1))


def _restarted(
    domain: Domain, events: Events, end: float, *, asked: bool, has_agent: bool, timeout: float
) -> None:
    """Ask a guest to restart until it has heard, and return when QEMU has been reset."""
    agent_until = time.monotonic() + AGENT_FIRST if has_agent else 0.0
    while True:
        by_agent = time.monotonic() < agent_until
        if not asked and by_agent:
            # It may still boot, or go down already. An agent that has heard is not asked again.
            with contextlib.suppress(AgentTimeout):
                domain.reboot()
                asked = True
        elif not asked:
            domain.reboot_by_button()
        while (event := events.next(ASK_AGAIN if by_agent else PRESS_AGAIN)) is not None:
            if event.name == "RESET":
                return
        if not domain.is_active():
            raise WrongState(
                f"{domain.name} powered off instead of restarting.", hint=f"`%vm start {domain.name}`"
            )
        if time.monotonic() > end:
            raise WaitTimeout(
                f"{domain.name} did not restart within {timeout:.0f} s.",
                hint=f"a guest without agent or ACPI cannot be asked: `%vm reboot --hard {domain.name}`",
            )


def kill(store: Store, name: str) -> None:
    """End a machine at once."""
    with hold(store, name, "kill") as (record, domain):
        domain.destroy()
        _leave_state(store, record)
        store.save_machine(record)


def pause(store: Store, name: str) -> None:
    """Stop a machine's CPUs."""
    identity.settle(name)
    with hold(store, name, "pause") as (_, domain):
        found = domain.condition()
        if found.state not in ("running", "paused"):
            raise WrongState(found.sentence(name), hint=found.way_out(name))
        domain.pause()


def resume(store: Store, name: str) -> None:
    """Let a paused machine go on, or wake one that sleeps."""
    with hold(store, name, "resume") as (_, domain):
        found = domain.condition()
        if found.state in ("off", "crashed"):
            raise WrongState(found.sentence(name), hint=found.way_out(name))
        if found.state != "running":
            domain.resume()
