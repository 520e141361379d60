package kir.edge.core;

import java.util.Collections;
import java.util.HashMap;
import java.util.Map;

/** The device at a swipe. Immutable. */
public final class DeviceState {
    public static final DeviceState UNKNOWN = new DeviceState(0, 0, Collections.<Long, Long>emptyMap());

    /** Index into Vocabulary.NETWORKS, and into DECODERS; 0 = unknown. */
    public final int network;
    public final int decoder;
    /** 0 … 1, NaN = not observed. Leaves the device by opt-in only, as orientation does. */
    public final float volume;
    /** 1 landscape, 0 portrait, -1 not observed. */
    public final long landscape;
    private final Map<Long, Long> bufferedMs;

    /** bufferedMs: video id to preloaded milliseconds; videos left out are "not told". */
    public DeviceState(int network, int decoder, Map<Long, Long> bufferedMs) {
        this(network, decoder, bufferedMs, Float.NaN, -1);
    }

    public DeviceState(int network, int decoder, Map<Long, Long> bufferedMs, float volume, long landscape) {
        if (network < 0 || network >= Vocabulary.NETWORKS.size() || decoder < 0
                || decoder >= Vocabulary.DECODERS.size()) {
            throw new KirException("network and decoder are indices", network + ", " + decoder, Vocabulary.NETWORKS);
        }
        this.network = network;
        this.decoder = decoder;
        this.bufferedMs = new HashMap<>(bufferedMs);
        this.volume = volume;
        this.landscape = landscape;
    }

    /** Preloaded milliseconds of a video, -1 = not told. */
    public long bufferedMs(long videoId) {
        Long told = bufferedMs.get(videoId);
        return told == null ? Vocabulary.NULL_INT : Math.max(Vocabulary.NULL_INT, told);
    }
}
