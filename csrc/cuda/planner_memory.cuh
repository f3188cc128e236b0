// What the device planner keeps, in shared memory or in the plan's scratch.
#pragma once

#include "cuda/planner_reports.cuh"

namespace varattn::planner {

// Two words of 24 and 8 bits each. (No bit-fields: nvcc takes these apart byte by byte.)
struct alignas(8) PlannedTile {
    uint32_t seq_key, blocks_more;
    static constexpr uint32_t kLow = (1 << 24) - 1;

    __device__ int32_t seq() const { return static_cast<int32_t>(seq_key & kLow); }
    // Of a decode, from kNumOrderKeys / 2.
    __device__ int32_t key() const { return static_cast<int32_t>(seq_key >> 24); }
    __device__ bool is_decode() const { return key() >= kNumOrderKeys / 2; }
    // Blocks (of the most possible, 2^24, one is left out: it moves no cost, target or key); once splits are chosen, the
    // first slot of a split tile.
    __device__ int32_t blocks_or_slot() const { return static_cast<int32_t>(blocks_more & kLow); }
    __device__ int32_t num_splits() const { return static_cast<int32_t>(blocks_more >> 24) + 1; }

    __device__ void set_key(int32_t key) { seq_key = seq() | static_cast<uint32_t>(key) << 24; }
    __device__ void set_pieces(int32_t blocks_or_slot, int32_t splits) {
        blocks_more = blocks_or_slot | static_cast<uint32_t>(splits - 1) << 24;
    }
};
static_assert(sizeof(PlannedTile) == kTileScratchWords * 4);
static_assert(kMaxSeqs <= 1 << 24 && kMaxNumSplits <= 256 && kArrivalCounters < 1 << 24 && kNumOrderKeys == 256);
constexpr int32_t kMaxTileBlocks = (1 << 24) - 1;

// Up to here, lists are kept in shared memory.
constexpr int kSharedSeqs = kChunkSeqs, kSharedTiles = kSortedTiles;

struct PlannerParams {
    PlanConfig config;
    CostModel costs;
    TileShape shape;
    SequenceLengths lengths;
    PlanLayout layout;
    char* plan;
    int32_t num_ctas;
};

// CTAs of the launch, which are one cluster, if there are clusters: a power of two, so many that each warp has few items to
// write.
inline int32_t num_ctas(const PlanConfig& c, bool has_clusters) {
    if (c.max_seqs > kSharedSeqs || !has_clusters) return 1;
    return max_tiles(c) <= 512 ? 4 : kMaxCtas;
}

constexpr int kItemParts = sizeof(WorkItem) / sizeof(uint4);

// The most cost of a piece, at each end.
struct Targets {
    int32_t cost[2];
    bool may_split;       // some tile has more
    bool may_be_wave[2];  // one wave of pieces, whose target is not known yet

    __device__ int32_t of(bool decode) const { return decode ? cost[1] : cost[0]; }
};

struct SharedMemory {
    SequenceShape shapes[kSharedSeqs];
    int32_t first_tiles[kSharedSeqs];
    union {
        PlannedTile tiles[kSharedTiles];
        uint4 large_staging[kWarps][32][kItemParts];  // if tiles are elsewhere, every warp writes items
    };
    ItemCounts counts;
    uint4 staging[kWriters][32][kItemParts];  // a warp's items on their way to the plan
    int32_t next_item[kNumOrderKeys];         // where this CTA's next item of a key goes
    int32_t num_items;
    int32_t keys_items[kNumOrderKeys / 64];  // of 64 keys each
    BlockScan<kWarps>::Buffer scan;
    Reports reports;
    Shares shares;
    Targets targets;
    alignas(16) PlanHeader header;  // written 16 bytes at a time
};
static_assert(sizeof(SharedMemory) <= 98 * 1024, "compute capability 8.6 has 99 KiB for a CTA");

template <bool kIsShared>  // whether in shared memory
struct Lists {
    SequenceShape* shapes;
    int32_t* first_tiles;  // of each sequence
    PlannedTile* tiles;
    int32_t num_tiles = 0;  // the same in every thread

    __device__ Lists(const PlannerParams& p, SharedMemory& s) : p_(p) {
        if constexpr (kIsShared) {
            shapes = s.shapes;
            first_tiles = s.first_tiles;
            tiles = s.tiles;
        } else {
            shapes = reinterpret_cast<SequenceShape*>(p.plan + p.layout.seqs);
            first_tiles = reinterpret_cast<int32_t*>(shapes + p.config.max_seqs);
            tiles = reinterpret_cast<PlannedTile*>(p.plan + p.layout.tiles);
        }
    }

    // Tile t, which is `tile`, of a sequence of this shape.
    __device__ Tile cut(int32_t t, const PlannedTile& tile, const SequenceShape& seq) const {
        return tile_at(p_.config, p_.shape, seq.q_len, seq.kv_len, t - first_tiles[tile.seq()]);
    }

private:
    const PlannerParams& p_;
};

}  // namespace varattn::planner
