#include "call.h"

namespace qk::capi {

int32_t Hosted::tasks_of(const qk_host* given, int32_t* tasks, const Say& say) {
  qk_host h = {};
  if (given)
    if (const int32_t status = read_struct(given, h, "qk_host", say)) return status;
  if (h.tasks < 0 || h.tasks > kMostTasks)
    return say(QK_BAD_ARGUMENT, "qk_host.tasks is %d, wanted 0 to %d", h.tasks, kMostTasks);
  *tasks = h.tasks > 1 ? h.tasks : 1;
  return QK_OK;
}

int32_t Hosted::begin(const qk_host* given, const Room& room, const Say& say) {
  qk_host h = {};
  if (given)
    if (const int32_t status = read_struct(given, h, "qk_host", say)) return status;
  if (h.flags & ~uint32_t(QK_OWN_SCRATCH | QK_OWN_THREADS))
    return say(QK_BAD_ARGUMENT, "qk_host.flags is %u, wanted QK_OWN_SCRATCH | QK_OWN_THREADS at most", h.flags);
  int32_t tasks;
  if (const int32_t status = tasks_of(given, &tasks, say)) return status;
  host_.tasks = tasks;
  host_.own_threads = h.flags & QK_OWN_THREADS;
  host_.own_scratch = h.flags & QK_OWN_SCRATCH;
  host_.parallel_for = h.parallel_for, host_.pool = h.pool;
  const size_t wanted = host_.own_scratch ? 0 : room.bytes(host_.tasks);
  if (wanted > 0) {
    if (!h.workspace || h.workspace_bytes < wanted)
      return say(QK_SMALL_WORKSPACE, "qk_host.workspace has %zu bytes, wanted %zu for %d tasks",
                 h.workspace ? h.workspace_bytes : 0, wanted, host_.tasks);
    uint8_t* const base = static_cast<uint8_t*>(h.workspace);
    host_.memory = base + (kLine - reinterpret_cast<uintptr_t>(base) % kLine) % kLine;
    host_.call_bytes = lines(room.call), host_.task_bytes = lines(room.task);
  }
  place_.host = &host_;
  place_.arena.at = host_.memory, place_.arena.left = host_.call_bytes;
  before_ = set_host(&place_);
  begun_ = true;
  return QK_OK;
}

}  // namespace qk::capi

extern "C" {

int32_t qk_version(void) { return QK_VERSION; }

const char* qk_status_name(int32_t status) {
  switch (status) {
    case QK_OK:
      return "QK_OK";
    case QK_BAD_STRUCT:
      return "QK_BAD_STRUCT";
    case QK_NULL_POINTER:
      return "QK_NULL_POINTER";
    case QK_BAD_ARGUMENT:
      return "QK_BAD_ARGUMENT";
    case QK_NO_KERNEL:
      return "QK_NO_KERNEL";
    case QK_SMALL_WORKSPACE:
      return "QK_SMALL_WORKSPACE";
    case QK_NO_MEMORY:
      return "QK_NO_MEMORY";
    default:
      return "unknown status";
  }
}

}  // extern "C"
