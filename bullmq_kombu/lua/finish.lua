--[[
finish: ends many deliveries, each guarded by its own token, then takes the next jobs.
Uses: _queue _take _parents _add _promise _finish
Rare: promote fail_ghost tell_others keep_nothing keep_more detach_from_parent count_metric go_on wake
KEYS: one "prefix:queue:" for each queue; the first ones are those to take from, in this order
ARGV: 1 now, ms   2 how many of KEYS to take from   3 wanted, 0 to take none   4 token of the new deliveries   5 lock, ms
  6 worker name, ''   7 limiter max, ''   8 limiter duration in ms, ''   then for each delivery
  1 what: completed, failed, retry, release (back to the head), limit (the same, because the queue is limited: it is not
    taken from in this call), commit (at most once from now on)
  2 number of its queue in KEYS   3 id   4 token   5 return value (JSON) or reason
  6 JSON list of traces, '' for none   7 kept jobs: count, -1 all, 0 none   8 kept: age in seconds, ''   9 kept: limit, ''
  10 failed: attempts allowed; retry: delay in ms   11 '' or JSON: lifo, skip, tm, log, metrics, fields,
  silent (this end tells nothing of the task that the job is)
Returns: {codes, jobs, queues}; codes: for each delivery 0 (limit: for how many ms the queue is closed), or -1 no such job,
  -2 not locked, -3 not active, -4 pending children, -6 locked by another delivery, -9 failed children; jobs and queues as
  `take` returns them
Events: completed, failed, retries-exhausted, delayed, waiting, drained; of parents too; those of `take`
]]
local HEAD, EACH = 8, 11
-- A text: that of a number would be made anew for every command.
local now, wanted = ARGV[1], tonumber(ARGV[3])
local opened, codes, kept, ended, ends = {}, {}, {}, {}, {}
local nothing, usual_keep = {}, {}

-- The policy of the delivery at `at`; mostly that of the one before.
local function keep_at(at)
  local count, age, limit = ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local usual = usual_keep
  if count ~= usual[1] or age ~= usual[2] or limit ~= usual[3] then
    usual = { count, age, limit, { count = tonumber(count) or -1, age = tonumber(age), limit = tonumber(limit) or 1000 } }
    usual_keep = usual
  end
  return usual[4]
end

local function prune_later(q, target, keep)
  local key = q.base .. target
  local before = kept[key]
  if before and before.keep == keep then
    return
  elseif before and (before.keep.count ~= keep.count or before.keep.age ~= keep.age) then
    settle(q)
    prune(q, target, before.keep, now)
  end
  kept[key] = { q = q, target = target, keep = keep }
end

-- What is asked of every job is asked for all of them at once: who holds the locks, and whether any completed one has children.
local locks, families = {}, {}
for at = HEAD + 1, #ARGV, EACH do
  local key = KEYS[tonumber(ARGV[at + 1])] .. ARGV[at + 2]
  locks[#locks + 1] = key .. ':lock'
  if ARGV[at] == 'completed' then
    families[#families + 1] = key .. ':dependencies'
    families[#families + 1] = key .. ':unsuccessful'
  end
end
local held = #locks > 0 and call('MGET', unpack(locks)) or nothing
local is_childless = #families > 0 and call('EXISTS', unpack(families)) == 0

for at = HEAD + 1, #ARGV, EACH do
  local what, number, id, token = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
  local text, stack = ARGV[at + 4], ARGV[at + 5]
  local q = opened[number]
  if not q then
    q = open_queue(KEYS[number])
    opened[number] = q
  end
  local more = ARGV[at + 10] ~= '' and cjson.decode(ARGV[at + 10]) or nothing
  local code, made
  if what == 'completed' or what == 'failed' then
    local keep, lock = keep_at(at), held[#codes + 1]
    code, made = finish(q, what, id, token, now, text, stack, keep, more, lock, is_childless)
    if code == 0 then
      ended[number] = true
      ends[#ends + 1] = { q, what, id, text, made, tonumber(ARGV[at + 9]) or 0 }
      if keep.count ~= 0 and (keep.count > 0 or keep.age) then
        prune_later(q, what, keep)
      end
    end
  elseif what == 'commit' then
    code = commit(q, id, token)
  else
    code = go_on(q, what, id, token, now, text, stack, tonumber(ARGV[at + 9]) or 0, more)
  end
  codes[#codes + 1] = code
end

for _, q in pairs(opened) do
  settle(q)
end
for _, set in pairs(kept) do
  prune(set.q, set.target, set.keep, now)
end
-- BullMQ says that a job has ended when all else that its end means has been said: also of the parents that retention freed.
for _, one in ipairs(ends) do
  tell(unpack(one))
end
local jobs, queues = {}, {}
if wanted > 0 then
  local worker = {
    token = ARGV[4], lock_ms = ARGV[5], name = ARGV[6], max = tonumber(ARGV[7]), window = tonumber(ARGV[8]),
  }
  jobs, queues = take_from(KEYS, now, wanted, worker, tonumber(ARGV[2]), opened)
end

for number in pairs(ended) do
  local q = opened[number]
  if not q.answered and call('EXISTS', q.base .. 'wait', q.base .. 'active', q.base .. 'prioritized') == 0 then
    emit(q, 'drained')
  elseif q.slots then
    wake(q) -- a place became free, and whoever waits for it is not asked by anybody else
  end
end
return { codes, jobs, queues }
