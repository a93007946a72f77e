// A lane: one native thread with a FIFO of jobs. Everything a device computes runs here, in the order it was asked.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace qn {

class Lane {
 public:
  Lane();
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // `job` must not throw. Jobs run one at a time.
  void submit(std::function<void()> job);
  int pending() const;
  // Runs no job that has not started: waits for the running one, joins, then destroys the others on the calling thread.
  // Later jobs are destroyed at once. Idempotent; not for the lane itself to call.
  void stop();

 private:
  void loop();

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace qn
