// The planning rules: pure functions of the config and of one sequence's lengths, or of sums over all tiles.
// Host planner (core/host_planner.cpp) and device planners evaluate these same functions, so their plans are equal.
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"
#include "core/layout.h"
#include "varattn/plan.h"

namespace varattn {

struct SequenceShape {
    int32_t q_begin, q_len;  // rows of q
    int32_t k_begin, kv_len;
};

// Prices, in about ns, of the kernel that runs the plan (see core/costs.h). An item costs a fixed part and one for each
// KV block; a decode as much as it takes where memory bandwidth is no limit.
struct CostModel {
    int32_t item, block, item_decode, block_decode;
    int32_t streaming_ctas;  // decodes on more CTAs than these are no faster: they share the memory's bandwidth
};

struct Range {
    int32_t begin, end;
};

// One offset of cu_seqlens_q / cu_seqlens_k: the running maximum of these makes offsets monotone.
VARATTN_HD constexpr int32_t clamp_offset(int32_t x, int32_t limit) { return clamp(x, 0, limit); }

VARATTN_HD constexpr int32_t group_size(const PlanConfig& c) { return c.num_heads_q / c.num_heads_kv; }

// Keys visible to token t (of q_len) of a sequence: bottom-right aligned, as FlashAttention defines windows.
VARATTN_HD constexpr Range visible_keys(const PlanConfig& c, int32_t q_len, int32_t kv_len, int32_t t) {
    int32_t diagonal = kv_len - q_len + t;
    int32_t begin = c.window_left < 0 ? 0 : max_of(0, diagonal - c.window_left);
    int32_t end = c.window_right < 0 ? kv_len : min_of(kv_len, diagonal + c.window_right + 1);
    return {begin, max_of(begin, end)};
}

VARATTN_HD constexpr int32_t log2_floor(uint32_t x) {
#ifdef __CUDA_ARCH__
    return 31 - __clz(x);
#else
    return std::bit_width(x) - 1;
#endif
}

// Divides numbers below 2^31 by a fixed one, in a multiplication.
struct Divisor {
    uint32_t by, factor;
    int32_t shift;
};

VARATTN_HD constexpr Divisor divisor(uint32_t by) {
    const int32_t bits = by > 1 ? log2_floor(by - 1) + 1 : 0;
    return {by, static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + by - 1) / by), 31 + bits};
}

VARATTN_HD constexpr uint32_t divide(uint32_t x, const Divisor& d) {
    return static_cast<uint32_t>(uint64_t{x} * d.factor >> d.shift);
}
VARATTN_HD constexpr uint32_t ceil_divide(uint32_t x, const Divisor& d) { return x == 0 ? 0 : divide(x - 1, d) + 1; }

// What tiles and their pieces follow from, divided out once.
struct TileShape {
    int32_t group;
    int32_t rows, tokens;   // of a prefill tile; tokens 0: a group fills more than one tile
    int32_t decode_tokens;  // sequences of no more are a decode tile
    int32_t block_n_log2;
    int32_t segment_log2;  // blocks of a segment: tiles are cut at its multiples
    int32_t max_slots[2];  // for partial results of prefills, of decodes
    Divisor per_tile;      // tokens, or, if these are 0, rows
    Divisor ctas;
};

VARATTN_HD constexpr TileShape tile_shape(const PlanConfig& c) {
    const int32_t group = group_size(c), rows = rows_per_tile(c), tokens = rows / group;
    const int32_t segment_log2 = c.batch_invariant ? log2_floor(kSegmentKeys / c.block_n) : 0;
    return {group,
            rows,
            tokens,
            c.tile_rows_decode / group,
            log2_floor(c.block_n),
            segment_log2,
            {max_slots(c, false), max_slots(c, true)},
            divisor(tokens > 0 ? tokens : rows),
            divisor(c.num_ctas)};
}

VARATTN_HD constexpr bool is_decode(const TileShape& shape, int32_t q_len) { return q_len <= shape.decode_tokens; }

VARATTN_HD constexpr int32_t num_tiles(const TileShape& shape, int32_t q_len) {
    if (is_decode(shape, q_len)) return q_len > 0;
    if (q_len == 0) return 0;
    return static_cast<int32_t>(ceil_divide(shape.tokens > 0 ? q_len : q_len * shape.group, shape.per_tile));
}

struct Tile {
    Range rows;    // packed rows of the sequence
    Range blocks;  // KV blocks that any of its rows sees
};

// A decode tile, whose index is 0, is cut like others: it has no more rows than they (see kernel_table.h).
VARATTN_HD constexpr Range rows_at(const TileShape& shape, int32_t q_len, int32_t index) {
    return {index * shape.rows, min_of(q_len * shape.group, (index + 1) * shape.rows)};
}

VARATTN_HD constexpr Tile tile_at(const PlanConfig& c, const TileShape& shape, int32_t q_len, int32_t kv_len,
                                  int32_t index) {
    Tile tile{rows_at(shape, q_len, index), {}};
    Range tokens{index * shape.tokens, min_of(q_len, (index + 1) * shape.tokens)};
    if (shape.tokens == 0) tokens = {tile.rows.begin / shape.group, (tile.rows.end - 1) / shape.group + 1};
    const int32_t begin = visible_keys(c, q_len, kv_len, tokens.begin).begin;
    const int32_t end = visible_keys(c, q_len, kv_len, tokens.end - 1).end;
    if (begin < end) tile.blocks = {begin >> shape.block_n_log2, ((end - 1) >> shape.block_n_log2) + 1};
    return tile;
}

// More blocks than these cost no more, so that no item costs more than kMaxCost; that and a sixth fits 31 bits.
inline constexpr int32_t kMaxPricedBlocks = 1 << 19, kMaxCost = 0x60000000;

// What pieces of a tile share out among them.
VARATTN_HD constexpr int32_t blocks_cost(const CostModel& m, bool decode, int32_t blocks) {
    return min_of(blocks, kMaxPricedBlocks) * (decode ? m.block_decode : m.block);
}

VARATTN_HD constexpr int32_t item_cost(const CostModel& m, bool decode, int32_t blocks) {
    return blocks_cost(m, decode, blocks) + (decode ? m.item_decode : m.item);
}

// ---- Shares of the CTAs ----------------------------------------------------------------------------------------------
// Prefill is bound by the CTAs that run it; decodes by the memory, as soon as streaming_ctas of them run at a time. The
// step takes as long as the slower of the two, `time` below. In that time prefill needs `least` CTAs at least, and leaves
// `most` at most. The middle gives both ends slack: an end that runs dry goes on with the other end's shortest items.

struct Totals {          // of all tiles, for one KV head: prefill, decode
    uint32_t blocks[2];  // priced ones, modulo 2^32, an hour's work: see limit_shares
    int32_t tiles[2];
    int32_t most_blocks[2];  // of a tile
};

// What all tiles of a kind cost, for all KV heads: their blocks, or everything.
VARATTN_HD constexpr uint64_t total_blocks_cost(const PlanConfig& c, const CostModel& m, const Totals& t, bool decode) {
    const auto block = static_cast<uint32_t>(decode ? m.block_decode : m.block);
    return uint64_t{t.blocks[decode]} * block * static_cast<uint32_t>(c.num_heads_kv);
}
VARATTN_HD constexpr uint64_t total_cost(const PlanConfig& c, const CostModel& m, const Totals& t, bool decode) {
    const auto item = static_cast<uint32_t>(decode ? m.item_decode : m.item);
    return total_blocks_cost(c, m, t, decode) +
           uint64_t{static_cast<uint32_t>(t.tiles[decode])} * item * static_cast<uint32_t>(c.num_heads_kv);
}

// By how much to shift this for 32-bit divisions: those of 64 bits are slow on a GPU.
VARATTN_HD constexpr int32_t shift_to_31_bits(uint64_t x) {
    return x >> 31 == 0 ? 0 : log2_floor(static_cast<uint32_t>(x >> 31)) + 1;
}

// Whether decodes have on average at least 8/9 of the blocks of the longest.
VARATTN_HD constexpr bool decodes_are_alike(const Totals& t) {
    return uint64_t{t.blocks[1]} * 9 >=
           uint64_t{static_cast<uint32_t>(t.tiles[1])} * static_cast<uint32_t>(t.most_blocks[1]) * 8;
}

VARATTN_HD constexpr bool fits_one_wave(const PlanConfig& c, int64_t pieces, int32_t ctas) {
    return pieces * c.num_heads_kv <= ctas;
}

struct Shares {
    int32_t front_ctas;
    uint32_t time;          // that the step takes, where front_ctas are not final: see Rounds; else 0
    int32_t most_front;     // that front_ctas may become: see Rounds
    int32_t ctas[2];        // that an end of the queue is planned for
    int32_t fair_share[2];  // average load of these
    int32_t least_wave[2];  // the least target of a wave
    bool may_be_wave[2];    // every tile can have a CTA of its own
    bool balanced[2];       // by other items: pieces need not be small for that
};

inline constexpr int kLeastPieceItems = 3;     // a piece's cost is worth this many times an item's fixed cost
inline constexpr int kLeastQueuedBlocks = 14;  // of a prefill's piece in a queue, as measured
inline constexpr uint32_t kMaxFairShare = 1 << 30;

VARATTN_HD constexpr int32_t least_piece(const CostModel& m, bool decode) {
    return kLeastPieceItems * (decode ? m.item_decode : m.item);
}

// Decodes alone. Memory bounds them, not what an item costs a CTA. In one wave, any piece is worth a CTA of its own; but
// where tiles that are much alike saturate the memory as they are, pieces gain nothing.
VARATTN_HD constexpr void share_decodes(const PlanConfig& c, const TileShape& shape, const CostModel& m,
                                        const Totals& t, int32_t shift, Shares& s) {
    const auto blocks = static_cast<uint32_t>(total_blocks_cost(c, m, t, true) >> shift);
    s.fair_share[1] =
        static_cast<int32_t>(min_of<uint64_t>(uint64_t{ceil_divide(blocks, shape.ctas)} << shift, kMaxFairShare));
    s.least_wave[1] = 1;
    if (s.may_be_wave[1] && !fits_one_wave(c, t.tiles[1], m.streaming_ctas - 1) && decodes_are_alike(t)) {
        s.fair_share[1] = kMaxFairShare;
        s.may_be_wave[1] = false;
    }
}

VARATTN_HD constexpr Shares share_ctas(const PlanConfig& c, const TileShape& shape, const CostModel& m,
                                       const Totals& t) {
    const uint64_t cost[2] = {total_cost(c, m, t, false), total_cost(c, m, t, true)};
    const int32_t shift = shift_to_31_bits(cost[0] + cost[1]);
    const auto prefill = static_cast<uint32_t>(cost[0] >> shift), decode = static_cast<uint32_t>(cost[1] >> shift);

    Shares s{};
    const bool mixed = t.tiles[0] > 0 && t.tiles[1] > 0;
    s.front_ctas = t.tiles[1] > 0 ? 0 : c.num_ctas;
    if (mixed) {
        const uint32_t memory_time = ceil_div<uint32_t>(decode, m.streaming_ctas),
                       load = ceil_divide(prefill + decode, shape.ctas), time = max_of(memory_time, load);
        // Decodes are short, but those that memory bounds take longer than their price.
        s.balanced[0] = decode >= prefill / 8;
        s.balanced[1] = memory_time < load;
        const auto least = static_cast<int32_t>((prefill + time / 2) / time);
        const int32_t most = c.num_ctas - static_cast<int32_t>(ceil_div(decode, time));
        const int32_t at_most = max_of(c.num_ctas - 1, 1);  // at least one at either end
        s.front_ctas = clamp((least + most) / 2, 1, at_most);
        // Decodes that are long, on average a quarter of the time, must not be left for the end.
        const bool long_decodes = uint64_t{decode} * 4 > uint64_t{time} * static_cast<uint32_t>(t.tiles[1]) *
                                                             static_cast<uint32_t>(c.num_heads_kv);
        s.most_front = long_decodes ? clamp(most, s.front_ctas, at_most) : at_most;
        const auto longest = static_cast<uint32_t>(item_cost(m, false, t.most_blocks[0]));
        if (shift == 0 && longest >= time / 8) s.time = time;
    }
    for (int kind = 0; kind < 2; ++kind) {
        if (t.tiles[kind] == 0) continue;
        const uint32_t of_kind = kind == 1 ? decode : prefill;
        s.ctas[kind] = max_of(kind == 1 ? c.num_ctas - s.front_ctas : s.front_ctas, 1);
        const uint32_t each = mixed ? ceil_div<uint32_t>(of_kind, s.ctas[kind]) : ceil_divide(of_kind, shape.ctas);
        s.fair_share[kind] = static_cast<int32_t>(min_of<uint64_t>(uint64_t{each} << shift, kMaxFairShare));
        s.least_wave[kind] = least_piece(m, kind == 1);
        s.may_be_wave[kind] = fits_one_wave(c, t.tiles[kind], s.ctas[kind]);
    }
    s.balanced[0] |= int64_t{t.tiles[0]} * c.num_heads_kv * 5 >= int64_t{s.ctas[0]} * 8;
    if (t.tiles[0] == 0 && t.tiles[1] > 0) share_decodes(c, shape, m, t, shift, s);
    return s;
}

// Where there may be more blocks than their sum tells, so that fair shares are too small, none is split: slots for all the
// pieces could not be counted. (Up to 2^13 tiles there are not.)
VARATTN_HD constexpr void limit_shares(const Totals& t, Shares& s) {
    for (int kind = 0; kind < 2; ++kind) {
        const uint64_t most =
            uint64_t{static_cast<uint32_t>(t.tiles[kind])} * static_cast<uint32_t>(t.most_blocks[kind]);
        if (most >> 32 == 0) continue;
        s.fair_share[kind] = kMaxCost;
        s.may_be_wave[kind] = false;
        s.balanced[kind] = true;
    }
}

// Prefill tasks run in sections of some KV heads each, one section after the other, so that the tiles that run at a time
// share their keys through the L2. A section has tasks for all CTAs twice. It lasts as long as the longest tile at least, or
// the longest tiles of the last section would begin too late.
VARATTN_HD constexpr int32_t section_heads(const PlanConfig& c, const TileShape& shape, const CostModel& m,
                                           const Totals& t) {
    const auto heads = static_cast<uint32_t>(c.num_heads_kv), tiles = static_cast<uint32_t>(t.tiles[0]);
    const auto pairs = static_cast<uint32_t>(min_of<uint64_t>(uint64_t{tiles} * heads / 2, 0x7fffffff));
    const uint32_t full = divide(pairs, shape.ctas);
    if (full < 2) return c.num_heads_kv;
    const uint64_t cost = total_cost(c, m, t, false);
    const int32_t shift = shift_to_31_bits(cost);
    const uint32_t longest = max_of<uint32_t>(item_cost(m, false, t.most_blocks[0]) >> shift, 1),
                   lasting = divide(static_cast<uint32_t>(cost >> shift), shape.ctas) / longest;
    return static_cast<int32_t>(ceil_div(heads, clamp<uint32_t>(min_of(full, lasting), 1, heads)));
}

// ---- Splitting -------------------------------------------------------------------------------------------------------
// At each end, a tile is cut into pieces of at most `target` cost. The fair share is the average load of the end's CTAs.
// If pieces of the fair share, or of little more, make one wave (every CTA has one piece at most), that is the target: few
// pieces, which end together. Otherwise five eighths of the fair share: pieces small enough for a longest-first queue to
// balance, where equal tiles that make 1.6 rounds or more stay whole; and the whole of it where other items do that, since a
// piece costs more than its price: a chain of tasks ends, rows are merged. Other items are those of the other end, and, of
// prefills, the other tiles, if all of them make 1.6 rounds or more.

inline constexpr int kNumWaveTargets = 6;  // fair share * (1 + i / 32)

VARATTN_HD constexpr int32_t wave_target(const Shares& s, bool decode, int i) {
    const int32_t fair = max_of(s.least_wave[decode], s.fair_share[decode]);
    return fair + ((fair + 31) >> 5) * i;
}

VARATTN_HD constexpr int32_t queue_target(const CostModel& m, const Shares& s, bool decode) {
    const int32_t fair = s.fair_share[decode];
    const int32_t least = decode ? least_piece(m, true) : kLeastQueuedBlocks * m.block;
    return max_of(least, s.balanced[decode] ? fair : fair - 3 * (fair >> 3));
}

VARATTN_HD constexpr int32_t segments_of(const TileShape& shape, Range blocks) {
    if (blocks.begin >= blocks.end) return 0;
    return ((blocks.end - 1) >> shape.segment_log2) - (blocks.begin >> shape.segment_log2) + 1;
}

// A long tile has at most 16 pieces, which a decode's merge reads at a time, or pieces of eight segments.
VARATTN_HD constexpr int32_t most_pieces(int32_t segments) {
    return segments <= 32 ? segments : max_of(segments / 8, 16);
}

VARATTN_HD constexpr int32_t splits_of(const PlanConfig& c, int32_t cost, int32_t segments, int32_t target) {
    if (c.num_splits == 1 || segments < 2 || cost <= target) return 1;
    const uint32_t pieces = ceil_div(static_cast<uint32_t>(cost), static_cast<uint32_t>(target));
    return static_cast<int32_t>(min_of<uint32_t>(pieces, min_of(c.num_splits, most_pieces(segments))));
}

// Slots for partial results that a split tile takes. Too many are cut to a number that is still too large, as sums of these
// must fit 32 bits.
VARATTN_HD constexpr int32_t slots_of(const PlanConfig& c, const TileShape& shape, bool decode, int32_t num_splits,
                                      int32_t segments) {
    return min_of(c.batch_invariant ? segments : num_splits, shape.max_slots[decode] + 1);
}

// Balanced: pieces differ by at most one segment, of which the first have one more, and none is empty.
VARATTN_HD constexpr Range split_blocks(const TileShape& shape, Range blocks, int32_t split, int32_t num_splits) {
    if (num_splits == 1) return blocks;
    const int32_t n = segments_of(shape, blocks),
                  each = static_cast<int32_t>(static_cast<uint32_t>(n) / static_cast<uint32_t>(num_splits)),
                  longer = n - each * num_splits;  // pieces
    const int32_t first = (blocks.begin >> shape.segment_log2) + each * split + min_of(split, longer);
    const int32_t end = first + each + (split < longer);
    return {max_of(blocks.begin, first << shape.segment_log2), min_of(blocks.end, end << shape.segment_log2)};
}

// Blocks of a tile's largest piece, or a few more.
VARATTN_HD constexpr int32_t largest_piece(const TileShape& shape, int32_t num_blocks, int32_t segments,
                                           int32_t num_splits) {
    if (num_splits == 1) return num_blocks;
    const auto each = ceil_div(static_cast<uint32_t>(segments), static_cast<uint32_t>(num_splits));
    return min_of(num_blocks, static_cast<int32_t>(each << shape.segment_log2));
}

// ---- Order -----------------------------------------------------------------------------------------------------------
// The queue has two ends. From the front: prefill items, longest first. From the back: decode items, longest first. So
// items are sorted by this key, ties in order of (sequence, tile, split).

inline constexpr int kNumOrderKeys = 256;

// Eight buckets per power of two from 2^9 to 2^25 (33 ms), 0..127.
VARATTN_HD constexpr int32_t cost_bucket(int32_t cost) {
    constexpr int kFirst = 9, kLast = kNumOrderKeys / 2 - 1;
    const uint32_t x = static_cast<uint32_t>(max_of(cost, 1 << kFirst));
    const int32_t exponent = log2_floor(x);
    return min_of<int32_t>((exponent - kFirst) * 8 + (x >> (exponent - 3) & 7), kLast);
}

// Of a tile: all its pieces share the key of its largest piece.
VARATTN_HD constexpr int32_t order_key(const CostModel& m, bool decode, int32_t largest_piece) {
    const int32_t bucket = cost_bucket(item_cost(m, decode, largest_piece));
    return decode ? kNumOrderKeys / 2 + bucket : kNumOrderKeys / 2 - 1 - bucket;
}

// ---- Rounds ----------------------------------------------------------------------------------------------------------
// Long prefill tiles run in rounds: each CTA of the front takes its first one, its second one, and so on. If a few are left
// over, they take a round more, in which most CTAs of the front have none. So their number is changed, by at most a sixteenth
// of all CTAs, to the one of which the last round ends first; decodes and short tiles fill in what this leaves, unless these
// are long.

// Of `index`, in order of preference: the fair number, one more, one less, two more and so on. 0: it can't be.
inline constexpr int kMaxFrontChoices = 31;
VARATTN_HD constexpr int32_t front_choice(const PlanConfig& c, const Shares& s, int32_t index) {
    const int32_t change = (index + 1) / 2, ctas = s.front_ctas + (index % 2 ? change : -change);
    const bool allowed = index < kMaxFrontChoices && change <= c.num_ctas / 16 && ctas > 0 && ctas <= s.most_front;
    return allowed ? ctas : 0;
}

// What tiles of a prefill's order key cost, by and large.
VARATTN_HD constexpr uint32_t cost_of_key(int32_t key) {
    const int32_t bucket = kNumOrderKeys / 2 - 1 - key;
    return static_cast<uint32_t>((17 + 2 * (bucket % 8)) << (bucket / 8 + 5));
}
// Short ones take no part.
VARATTN_HD constexpr bool runs_in_rounds(const Shares& s, uint32_t cost) { return cost * 8 >= s.time; }

// When the rounds end, if so many CTAs run them: after `time`, which the step takes anyway, or later.
struct Rounds {
    uint32_t ctas, reciprocal, end;
    uint32_t tasks = 0, cost = 0;

    VARATTN_HD constexpr Rounds(int32_t num_ctas, uint32_t time)
        : ctas(num_ctas), reciprocal(0xffffffffu / ctas + 1), end(time) {}

    // More tasks, each of this cost, which is no more than that of those before.
    VARATTN_HD constexpr void add(uint32_t more, uint32_t each) {
        const uint32_t last_round = shared_out(tasks + more - 1) * ctas;  // its first task
        if (more > 0 && last_round >= tasks) end = max_of(end, shared_out(cost + (last_round - tasks) * each) + each);
        tasks += more;
        cost += more * each;
    }

private:
    // x / ctas, without a division; one more in some cases of x beyond 2^24.
    VARATTN_HD constexpr uint32_t shared_out(uint32_t x) const {
        return ctas == 1 ? x : static_cast<uint32_t>(uint64_t{x} * reciprocal >> 32);
    }
};

// CTAs for which there is no decode start at the front after all: one long decode with many short prefills takes 1% less.
VARATTN_HD constexpr int32_t final_front_ctas(const PlanConfig& c, int32_t front_ctas, int32_t num_front_items,
                                              int32_t num_items) {
    if (num_front_items == 0 || num_front_items == num_items) return front_ctas;
    const int64_t decodes = int64_t{num_items - num_front_items} * c.num_heads_kv;
    return max_of(front_ctas, static_cast<int32_t>(c.num_ctas - min_of<int64_t>(decodes, c.num_ctas)));
}

// A split tile's place among the partial results: slots are handed out at each end, in order of (sequence, tile).
VARATTN_HD constexpr int32_t partial_row_of(const PlanConfig& c, const TileShape& shape, bool decode,
                                            int32_t first_slot) {
    return decode ? shape.max_slots[0] * c.tile_rows + first_slot * c.tile_rows_decode : first_slot * c.tile_rows;
}

// Its arrival counter. A split tile has two slots or more, so these differ.
VARATTN_HD constexpr int32_t split_tile_of(const TileShape& shape, bool decode, int32_t first_slot) {
    return (decode ? shape.max_slots[0] / 2 : 0) + first_slot / 2;
}

VARATTN_HD constexpr WorkItem make_item(const PlanConfig& c, const CostModel& m, const TileShape& shape, int32_t seq,
                                        const SequenceShape& s, bool decode, int32_t tile_index, const Tile& tile,
                                        int32_t split, int32_t num_splits, int32_t first_slot) {
    WorkItem w{};
    const Range blocks = split_blocks(shape, tile.blocks, split, num_splits);
    w.seq = seq;
    w.q_begin = s.q_begin;
    w.q_len = s.q_len;
    w.k_begin = s.k_begin;
    w.kv_len = s.kv_len;
    w.row_begin = tile.rows.begin;
    w.row_end = tile.rows.end;
    w.block_begin = blocks.begin;
    w.block_end = blocks.end;
    w.split = split;
    w.num_splits = num_splits;
    w.split_tile = num_splits > 1 ? split_tile_of(shape, decode, first_slot) : -1;
    w.partial_row = num_splits > 1 ? partial_row_of(c, shape, decode, first_slot) : 0;
    // The modes add up keys in different orders: one for all, where bits must not depend on the number of rows.
    w.flags = decode && !c.batch_invariant ? kItemDecode : 0;
    w.tile = tile_index;
    w.cost = item_cost(m, decode, blocks.end - blocks.begin);
    return w;
}

}  // namespace varattn
