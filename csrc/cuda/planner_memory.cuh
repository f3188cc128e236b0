// What the device planner keeps, in shared memory or in the plan's scratch.
#pragma once

#include "cuda/planner_order.cuh"

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

// CTAs of the launch, a power of two: so many that each warp has few items to write.
inline int32_t num_ctas(const PlanConfig& c) {
    if (c.max_seqs > kSharedSeqs) return 1;
    return max_tiles(c) <= 1024 ? 4 : max_tiles(c) <= 2048 ? 8 : 16;
}

constexpr int kItemParts = sizeof(WorkItem) / sizeof(uint4);
constexpr int kWriters = 8;    // warps of a CTA that write items
constexpr int kFewTiles = 32;  // which a warp can hold, a tile a thread

// Added up by all warps.
struct Sums {
    uint32_t blocks[2], decodes, most_blocks[2];  // of all tiles: see Totals
    int32_t wave_pieces[2][kNumWaveTargets];      // pieces that each target would make
    uint32_t large_tiles;                         // tiles that cost more than their target
};

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
    // Position of the key's next item, after all items of other warps' keys; items of each warp's keys.
    int32_t next_item[kNumOrderKeys], keys_items[kNumOrderKeys / 32];
    BlockScan<kWarps>::Buffer scan;
    Sums sums;
    Shares shares;
    Targets targets;
    int32_t large_tiles[kFewTiles];
    alignas(16) PlanHeader header;  // written 16 bytes at a time
};
static_assert(sizeof(SharedMemory) <= 98 * 1024, "compute capability 8.6 has 99 KiB for a CTA");

// Of the keys of earlier warps.
__device__ inline int32_t keys_items_before(const SharedMemory& s, int32_t key) {
    int32_t items = 0;
#pragma unroll
    for (int warp = 0; warp < kNumOrderKeys / 32; ++warp)
        items += warp < key / 32 ? s.keys_items[warp] : 0;
    return items;
}

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
