// What the CTAs of the device planner tell each other of their tiles.
#pragma once

#include <cstddef>

#include "cuda/planner_order.cuh"
#include "device/cluster.cuh"

namespace varattn::planner {

constexpr int kMaxCtas = 8;  // of a cluster, on any device that has them
constexpr int kWriters = 8;  // last warps of a CTA, which write items of tiles in shared memory

// First warps, which cut, split and count tiles. If tiles are not in shared memory, all warps do everything.
template <bool kIsShared>
constexpr int kSorters = kIsShared ? kWarps - kWriters : kWarps;

// Of a warp's tiles.
struct alignas(16) WarpSplits {
    uint32_t slots[2];                   // for partial results, of prefills and of decodes
    uint32_t split_tiles, partial_rows;  // see PlanHeader
};

// Of a CTA's tiles.
struct alignas(16) CtaReport {
    uint32_t blocks[2], most_blocks[2], decodes;  // see Totals
    alignas(16) uint16_t items[kNumOrderKeys];
    WarpSplits splits[kWarps];
    alignas(16) int32_t wave_pieces[2][kNumWaveTargets];  // pieces that each target would make
    alignas(16) int32_t none;
};

// What of it is told at a time, in bytes.
struct ReportPart {
    int index;
    uint32_t begin, end;
};
constexpr ReportPart kTilesPart{0, 0, offsetof(CtaReport, splits)},  // whole
    kSplitsPart{1, offsetof(CtaReport, items), offsetof(CtaReport, splits) + kSorters<true> * sizeof(WarpSplits)},
    kFittingSplitsPart{2, kSplitsPart.begin, kSplitsPart.end},  // of tiles that there is room for
    kWavesPart{3, offsetof(CtaReport, wave_pieces), offsetof(CtaReport, none)},
    kNoPart{4, offsetof(CtaReport, none), sizeof(CtaReport)};  // that reports have been read
constexpr int kNumReportParts = 5;

struct Reports {
    CtaReport of_cta[kMaxCtas];
    Inbox inboxes[kNumReportParts];

    // All threads, once.
    __device__ void open(int num_ctas) {
        const int word = threadIdx.x;
        if (word < int(sizeof(CtaReport) / 4)) reinterpret_cast<int32_t*>(&of_cta[blockIdx.x])[word] = 0;
        open_part<kTilesPart>(num_ctas);
        open_part<kSplitsPart>(num_ctas);
        open_part<kFittingSplitsPart>(num_ctas);
        open_part<kWavesPart>(num_ctas);
        open_part<kNoPart>(num_ctas);
    }

    // Tells the other CTAs this part of the report, which all threads see, a warp each. What they were told before is
    // overwritten.
    template <const ReportPart& kPart>
    __device__ void send(int num_ctas) {
        constexpr int kBegin = kPart.begin / sizeof(uint4), kEnd = kPart.end / sizeof(uint4);
        static_assert(kBegin * sizeof(uint4) == kPart.begin && kEnd * sizeof(uint4) == kPart.end);
        const int lane = threadIdx.x % 32, rank = threadIdx.x / 32, own = static_cast<int>(blockIdx.x);
        if (rank >= num_ctas || rank == own) return;
        auto* parts = reinterpret_cast<uint4*>(&of_cta[own]);
#pragma unroll
        for (int i = kBegin + lane; i < kEnd; i += 32)
            inboxes[kPart.index].send(parts + i, parts[i], rank);
    }
    // Waits until all of them have told it.
    template <const ReportPart& kPart>
    __device__ void await(int num_ctas) {
        if (num_ctas > 1) inboxes[kPart.index].wait();
    }

private:
    template <const ReportPart& kPart>
    __device__ void open_part(int num_ctas) {
        if (threadIdx.x == 32 * kPart.index) inboxes[kPart.index].open((num_ctas - 1) * (kPart.end - kPart.begin));
    }
};

}  // namespace varattn::planner
