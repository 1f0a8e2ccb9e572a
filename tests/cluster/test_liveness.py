"""The driver's pulse goes on while NeMo-RL does, and no longer."""

import time

from nemo_thinkprune.cluster.liveness import PATIENCE_S, PULSE_S, SLOWER, Liveness


class Context:
    def __init__(self):
        self.pulses = 0

    def pulse(self):
        self.pulses += 1


def beats_after(liveness, context, now, seconds):
    now[0] += seconds
    before = context.pulses
    liveness.beat()
    return context.pulses > before


def test_it_waits_for_a_start_and_no_longer():
    now, context = [0.0], Context()
    liveness = Liveness(context, clock=lambda: now[0])
    assert beats_after(liveness, context, now, PATIENCE_S)
    assert not beats_after(liveness, context, now, 1)
    liveness.sign()
    assert beats_after(liveness, context, now, 1)


def test_a_run_of_slow_steps_is_given_more():
    now, context = [0.0], Context()
    liveness = Liveness(context, clock=lambda: now[0])
    now[0] += 4000
    liveness.sign()
    assert beats_after(liveness, context, now, SLOWER * 4000)
    assert not beats_after(liveness, context, now, 1)


def test_it_beats_by_itself_during_the_block():
    context = Context()
    with Liveness(context).beating():
        time.sleep(2.5 * PULSE_S)
        assert context.pulses >= 1
    ended = context.pulses
    time.sleep(1.5 * PULSE_S)
    assert context.pulses == ended
