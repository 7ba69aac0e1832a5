// The threads of a caller, who keeps them awake for work of its own: shares rows among them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "edgeqat.h"

namespace edgeqat {

constexpr int64_t kValuesOfAThread = 1 << 14;  // fewer are not worth a second thread

// Calls work(row) for each of `rows` rows of `columns` values; it must not throw.
template <class Work>
void each_row(const edgeqat_team& team, int64_t rows, int64_t columns, const Work& work) {
  const int64_t most = std::min<int64_t>(rows, team.threads);
  const int64_t shares = std::min(most, rows * columns / kValuesOfAThread);
  if (!team.run || shares < 2) {
    for (int64_t row = 0; row < rows; ++row) work(row);
    return;
  }
  struct Queue {
    const Work& work;
    int64_t rows, part;
    std::atomic<int64_t> next;
  } queue{work, rows, (rows + 4 * shares - 1) / (4 * shares), {0}};
  const auto serve = [](void* context) {
    Queue& own = *static_cast<Queue*>(context);
    for (int64_t begin; (begin = own.next.fetch_add(own.part)) < own.rows;)
      for (int64_t row = begin; row < std::min(begin + own.part, own.rows); ++row) own.work(row);
  };
  // All of them, also those that find nothing to do: libgomp would end the others.
  team.run(serve, &queue, unsigned(team.threads), 0);
}

}  // namespace edgeqat
