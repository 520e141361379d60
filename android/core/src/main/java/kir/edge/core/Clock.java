package kir.edge.core;

/** Time on the device; both in milliseconds. */
public interface Clock {
    /** Boot time: never goes back and goes on while the device sleeps (SystemClock.elapsedRealtime). */
    long monotonicMs();

    /** Unix time that does not jump within a session: wall time at its start plus monotonic time since. */
    long nowMs();
}
