// The device planner's first phase: lengths as they were given become shapes of sequences.
#pragma once

#include "core/schedule.h"
#include "device/scan.cuh"

namespace varattn::planner {

using namespace device;

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kSeqsPerThread = 2, kChunkSeqs = kThreads * kSeqsPerThread;  // of sequences that are read at a time

// What a thread reads.
struct GivenLengths {
    int32_t q[kSeqsPerThread + 1], k[kSeqsPerThread + 1], used[kSeqsPerThread];
};

// Reads chunk after chunk. Thread t has sequences 2 * t and 2 * t + 1 of a chunk.
class LengthReader {
public:
    __device__ LengthReader(const PlanConfig& c, const SequenceLengths& in, BlockScan<kWarps>& scan)
        : c_(c), in_(in), scan_(scan) {}

    __device__ static int32_t first_of_thread(int32_t chunk) { return chunk + kSeqsPerThread * threadIdx.x; }

    __device__ GivenLengths load(int32_t chunk) const {
        const int32_t seq = first_of_thread(chunk);
        GivenLengths g{};
        if (seq >= c_.max_seqs) return g;
        const bool two = seq + 1 < c_.max_seqs;
        g.q[0] = in_.cu_seqlens_q[seq];
        g.q[1] = in_.cu_seqlens_q[seq + 1];
        if (two) g.q[2] = in_.cu_seqlens_q[seq + 2];
        if (in_.cu_seqlens_k) {
            g.k[0] = in_.cu_seqlens_k[seq];
            g.k[1] = in_.cu_seqlens_k[seq + 1];
            if (two) g.k[2] = in_.cu_seqlens_k[seq + 2];
        }
        if (in_.seqused_k) {
            g.used[0] = in_.seqused_k[seq];
            if (two) g.used[1] = in_.seqused_k[seq + 1];
        }
        if (!two) {
            g.q[2] = g.q[1];
            g.k[2] = g.k[1];
        }
        return g;
    }

    // Whether they can be taken as they are, if all threads say so.
    __device__ bool is_in_order(const GivenLengths& g) const {
        return monotone_ && 0 <= g.q[0] && g.q[0] <= g.q[1] && g.q[1] <= g.q[2] && g.q[2] <= c_.max_total_q &&
               0 <= g.k[0] && g.k[0] <= g.k[1] && g.k[1] <= g.k[2];
    }

    // Of this thread's sequences, whose offsets are in order; those past the last are empty. Returns what was clamped.
    __device__ uint32_t shapes_of(const GivenLengths& g, SequenceShape (&shapes)[kSeqsPerThread]) const {
        uint32_t status = 0;
#pragma unroll
        for (int i = 0; i < kSeqsPerThread; ++i) {
            SequenceShape& shape = shapes[i];
            shape = {g.q[i], g.q[i + 1] - g.q[i], g.k[i], kMaxLength};
            if (in_.cu_seqlens_k) {
                shape.kv_len = min_of(kMaxLength, g.k[i + 1] - g.k[i]);
                if (!in_.seqused_k && shape.kv_len < g.k[i + 1] - g.k[i]) status |= kStatusCuSeqlensK;
            }
            if (in_.seqused_k) {
                shape.kv_len = clamp(g.used[i], 0, shape.kv_len);
                if (shape.kv_len != g.used[i]) status |= kStatusSequsedK;
            }
        }
        return status;
    }

    // All threads, if one's offsets are out of order: they become the running maximum of what was given.
    __device__ void clamp_offsets(int32_t chunk, GivenLengths& g) {
        constexpr int32_t kNoLimit = 0x7fffffff;
        if (monotone_) {  // until here
            const int32_t q = in_.cu_seqlens_q[chunk], k = in_.cu_seqlens_k ? in_.cu_seqlens_k[chunk] : 0;
            last_q_ = clamp_offset(q, c_.max_total_q);
            last_k_ = clamp_offset(k, kNoLimit);
            if (last_q_ != q) status_ |= kStatusCuSeqlensQ;
            if (last_k_ != k) status_ |= kStatusCuSeqlensK;
            monotone_ = false;
        }
        const GivenLengths given = g;
        for (int i = 1; i <= kSeqsPerThread; ++i) {
            g.q[i] = clamp_offset(g.q[i], c_.max_total_q);
            g.k[i] = clamp_offset(g.k[i], kNoLimit);
        }
        const int32_t offsets[2] = {max_of(g.q[1], g.q[2]), max_of(g.k[1], g.k[2])};
        const auto running = scan_.exclusive<Max>(offsets);
        g.q[0] = max_of(last_q_, running.before[0]);
        g.k[0] = max_of(last_k_, running.before[1]);
        for (int i = 1; i <= kSeqsPerThread; ++i) {
            g.q[i] = max_of(g.q[i - 1], g.q[i]);
            g.k[i] = max_of(g.k[i - 1], g.k[i]);
            if (first_of_thread(chunk) + i > c_.max_seqs) continue;
            if (g.q[i] != given.q[i]) status_ |= kStatusCuSeqlensQ;
            if (g.k[i] != given.k[i]) status_ |= kStatusCuSeqlensK;
        }
        last_q_ = max_of(last_q_, running.total[0]);
        last_k_ = max_of(last_k_, running.total[1]);
    }

    // What clamp_offsets has clamped.
    __device__ uint32_t status() const { return status_; }

private:
    const PlanConfig& c_;
    const SequenceLengths& in_;
    BlockScan<kWarps>& scan_;
    bool monotone_ = true;             // so far: offsets can be taken as they are
    int32_t last_q_ = 0, last_k_ = 0;  // else: their running maximum
    uint32_t status_ = 0;
};

}  // namespace varattn::planner
