#include "core/host_planner.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace varattn {
namespace {

struct PlannedTile {
    int32_t seq, index;
    Tile tile;
    bool decode;
    int32_t cost, segments;  // of its blocks
    int32_t num_splits = 1;
    int32_t first_slot = 0;

    int32_t blocks() const { return tile.blocks.end - tile.blocks.begin; }
    int32_t rows() const { return tile.rows.end - tile.rows.begin; }
};

// Most cost of a piece at one end of the queue.
int32_t choose_target(const PlanConfig& c, const CostModel& costs, const Shares& shares, bool decode,
                      const std::vector<PlannedTile>& tiles) {
    for (int i = 0; i < kNumWaveTargets && shares.may_be_wave[decode]; ++i) {
        const int32_t target = wave_target(shares, decode, i);
        int64_t pieces = 0;
        for (const PlannedTile& t : tiles)
            if (t.decode == decode) pieces += splits_of(c, t.cost, t.segments, target);
        if (fits_one_wave(c, pieces, shares.ctas[decode])) return target;
    }
    return queue_target(costs, shares, decode);
}

// CTAs that start at the front, where there are so many tasks of each key of prefills.
int32_t choose_front(const PlanConfig& c, const Shares& shares, const std::vector<uint32_t>& tasks) {
    if (shares.time == 0) return shares.front_ctas;
    uint32_t first_end = ~0u;
    int32_t best = shares.front_ctas;
    for (int32_t i = 0; i < kMaxFrontChoices; ++i) {
        const int32_t ctas = front_choice(c, shares, i);
        if (ctas == 0) continue;
        Rounds rounds(ctas, shares.time);
        for (int32_t key = 0; key < kNumOrderKeys / 2 && runs_in_rounds(shares, cost_of_key(key)); ++key)
            rounds.add(tasks[key], cost_of_key(key));
        if (rounds.end < first_end) first_end = rounds.end, best = ctas;
    }
    return best;
}

}  // namespace

uint32_t read_lengths(const PlanConfig& c, const SequenceLengths& in, std::vector<SequenceShape>& seqs) {
    uint32_t status = 0;
    int32_t q = 0, k = 0;
    auto advance = [&](int32_t& offset, int32_t given, int32_t limit, uint32_t bit) {
        int32_t next = std::max(offset, clamp_offset(given, limit));
        if (next != given) status |= bit;
        offset = next;
    };
    if (c.max_seqs > 0) {
        advance(q, in.cu_seqlens_q[0], c.max_total_q, kStatusCuSeqlensQ);
        if (in.cu_seqlens_k) advance(k, in.cu_seqlens_k[0], 0x7fffffff, kStatusCuSeqlensK);
    }
    seqs.resize(c.max_seqs);
    for (int32_t i = 0; i < c.max_seqs; ++i) {
        SequenceShape& s = seqs[i];
        s.q_begin = q;
        s.k_begin = k;
        advance(q, in.cu_seqlens_q[i + 1], c.max_total_q, kStatusCuSeqlensQ);
        s.q_len = q - s.q_begin;
        int32_t longest = kMaxLength;
        if (in.cu_seqlens_k) {
            advance(k, in.cu_seqlens_k[i + 1], 0x7fffffff, kStatusCuSeqlensK);
            const int32_t range = k - s.k_begin;
            longest = std::min(longest, range);
            if (longest < range && !in.seqused_k) status |= kStatusCuSeqlensK;
        }
        s.kv_len = longest;
        if (in.seqused_k) {
            s.kv_len = clamp(in.seqused_k[i], 0, longest);
            if (s.kv_len != in.seqused_k[i]) status |= kStatusSequsedK;
        }
    }
    return status;
}

void plan_on_host(const PlanConfig& c, const CostModel& costs, const SequenceLengths& lengths, void* plan) {
    std::vector<SequenceShape> seqs;
    PlanHeader header{};
    header.magic = kPlanMagic;
    header.config = c;
    header.status = read_lengths(c, lengths, seqs);
    if (c.max_seqs > 0) {
        header.q_begin = seqs.front().q_begin;
        header.q_end = seqs.back().q_begin + seqs.back().q_len;
    }

    const TileShape shape = tile_shape(c);
    std::vector<PlannedTile> tiles;
    Totals totals{};
    for (int32_t i = 0; i < c.max_seqs; ++i) {
        const bool decode = is_decode(shape, seqs[i].q_len);
        for (int32_t t = 0; t < num_tiles(shape, seqs[i].q_len); ++t) {
            const Tile tile = tile_at(c, shape, seqs[i].q_len, seqs[i].kv_len, t);
            const int32_t num_blocks = tile.blocks.end - tile.blocks.begin,
                          priced = std::min(num_blocks, kMaxPricedBlocks);
            tiles.push_back(
                {i, t, tile, decode, blocks_cost(costs, decode, num_blocks), segments_of(shape, tile.blocks)});
            totals.blocks[decode] += priced;
            totals.tiles[decode] += 1;
            totals.most_blocks[decode] = std::max(totals.most_blocks[decode], priced);
        }
    }
    Shares shares = share_ctas(c, shape, costs, totals);
    limit_shares(totals, shares);
    header.section_heads = section_heads(c, shape, costs, totals);

    int32_t targets[2];
    for (const bool decode : {false, true})
        targets[decode] = choose_target(c, costs, shares, decode, tiles);
    int32_t slots_before[2] = {};
    for (PlannedTile& t : tiles) {
        const int32_t splits = splits_of(c, t.cost, t.segments, targets[t.decode]);
        if (splits < 2) continue;
        const int32_t slots = slots_of(c, shape, t.decode, splits, t.segments);
        t.first_slot = slots_before[t.decode];
        slots_before[t.decode] += slots;  // even where there is no room: a prefix sum, which the device can take
        if (slots_before[t.decode] > max_slots(c, t.decode)) continue;
        t.num_splits = splits;
        header.num_split_tiles += 1;
        header.num_partial_rows += slots * t.rows();
    }

    std::vector<const PlannedTile*> order;
    for (const PlannedTile& t : tiles)
        order.push_back(&t);
    auto key = [&](const PlannedTile* t) {
        return order_key(costs, t->decode, largest_piece(shape, t->blocks(), t->segments, t->num_splits));
    };
    std::stable_sort(order.begin(), order.end(), [&](auto* a, auto* b) { return key(a) < key(b); });
    std::vector<uint32_t> tasks(kNumOrderKeys / 2);
    for (const PlannedTile& t : tiles)
        if (!t.decode) tasks[key(&t)] += t.num_splits * c.num_heads_kv;

    auto* items = reinterpret_cast<WorkItem*>(static_cast<char*>(plan) + plan_layout(c).items);
    for (const PlannedTile* t : order) {
        for (int32_t s = 0; s < t->num_splits; ++s)
            items[header.num_items++] = make_item(c, costs, shape, t->seq, seqs[t->seq], t->decode, t->index, t->tile,
                                                  s, t->num_splits, t->first_slot);
        if (!t->decode) header.num_front_items = header.num_items;
    }
    header.num_front_ctas =
        final_front_ctas(c, choose_front(c, shares, tasks), header.num_front_items, header.num_items);
    std::memcpy(plan, &header, sizeof header);
}

}  // namespace varattn
