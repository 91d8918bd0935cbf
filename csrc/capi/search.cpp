// qk_topk.
#include "../cpu/topk.h"
#include "network.h"

namespace qk::capi {
namespace {

constexpr int64_t kLongestDistance = 16512;  // 2·255²·16512 < 2³¹: the score that distances are found by

struct TopkCall {
  TopK job;
  Entry entry;
  Room room;
};

int64_t longest(const qk_topk_args& q) {
  if (q.distance) return kLongestDistance;
  const bool corpus = q.corpus_type == QK_S8, query = q.query_type == QK_S8;
  return corpus && query ? 131071 : corpus || query ? 65793 : 33025;  // A2
}

int32_t check_topk(const qk_topk_args& q, const Say& say) {
  for (const int32_t type : {q.corpus_type, q.query_type})
    if (const int32_t status = check_codes_type(type, say)) return status;
  if (q.distance && q.corpus_type != q.query_type)
    return say(QK_BAD_ARGUMENT, "corpus_type is %d, query_type %d, wanted one type for distances", q.corpus_type,
               q.query_type);
  for (const int64_t size : {q.rows, q.dims, q.queries, q.k})
    if (size < 1 || size >= kMost) return say(QK_BAD_ARGUMENT, "a size of %lld, wanted 1 … 2^31 − 1", (long long)size);
  if (q.k > q.rows)
    return say(QK_BAD_ARGUMENT, "k is %lld, wanted at most the %lld rows", (long long)q.k, (long long)q.rows);
  if (q.dims > longest(q))
    return say(QK_BAD_ARGUMENT, "dims is %lld, and sums could leave int32 beyond %lld", (long long)q.dims,
               (long long)longest(q));
  if (!strides_fit(q.rows, q.corpus_row, q.dims, q.corpus_column) ||
      !strides_fit(q.queries, q.query_row, q.dims, q.query_column) || !fits(double(q.queries) * double(q.k) * 8) ||
      !fits(double(q.k) * 256 * 256 * 16))
    return say(QK_BAD_ARGUMENT, "the strides, or queries times k, are too large");
  return QK_OK;
}

int32_t read_topk_for(const qk_topk_args* args, bool query, int32_t tasks, TopkCall& c, const Say& say) {
  qk_topk_args q;
  if (const int32_t status = read_struct(args, q, "qk_topk_args", say)) return status;
  if (const int32_t status = check_topk(q, say)) return status;
  if (!query && (!q.corpus || !q.query || !q.scores || !q.indices))
    return say(QK_NULL_POINTER, "%s is NULL",
               !q.corpus   ? "corpus"
               : !q.query  ? "query"
               : !q.scores ? "scores"
                           : "indices");
  char types[16];
  snprintf(types, sizeof types, "%s%ss32", code_letters(q.corpus_type), code_letters(q.query_type));
  if (const int32_t status = choose(q.kernel, {"topk", types, "", q.rows, q.queries, q.dims, nullptr}, c.entry, say))
    return status;
  c.job = {};
  TopK& job = c.job;
  job.corpus = static_cast<const uint8_t*>(q.corpus), job.rows = q.rows, job.dims = q.dims;
  job.corpus_row = q.corpus_row, job.corpus_col = q.corpus_column;
  job.queries = static_cast<const uint8_t*>(q.query), job.columns = q.queries;
  job.queries_row = q.query_row, job.queries_col = q.query_column;
  job.k = q.k, job.distance = q.distance != 0, job.scores = q.scores, job.indices = q.indices;
  const TopKRoom room = topk_room(*c.entry.product, job, tasks > 1 ? tasks : 1);
  c.room = {room.call, room.task};
  return QK_OK;
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_topk_workspace(const qk_topk_args* args, int32_t tasks, size_t* bytes, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!bytes) return say(QK_NULL_POINTER, "bytes is NULL");
  if (tasks > kMostTasks) tasks = kMostTasks;
  TopkCall c;
  if (const int32_t status = read_topk_for(args, true, tasks, c, say)) return status;
  *bytes = c.room.bytes(tasks);
  return QK_OK;
}

int32_t qk_topk(const qk_topk_args* args, const qk_host* host, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  int32_t tasks = 1;
  if (const int32_t status = Hosted::tasks_of(host, &tasks, say)) return status;
  TopkCall c;
  if (const int32_t status = read_topk_for(args, false, tasks, c, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, c.room, say)) return status;
  return run_topk(*c.entry.product, c.job, hosted.tasks(), false) ? QK_OK : say(QK_NO_MEMORY, "no memory for scratch");
}

}  // extern "C"
