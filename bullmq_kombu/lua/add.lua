--[[
add: stores jobs, all or none of them seen by anybody in between.
Uses: _queue _parents _add
KEYS: one "prefix:queue:" for each queue involved
ARGV: now in ms, then for each job
  1 number of its queue in KEYS   2 id, '' for the next number   3 name   4 data, JSON   5 opts, JSON
  6 timestamp, ms   7 delay, ms   8 priority   9 the celery field, '' for none
  10 '' or JSON of what few jobs have:
     lifo          before the others of the list
     parentKey, parent   full key of the parent, and the JSON kept of it
     rjk           the scheduler that made it
     de            deduplication: id, ttl, extend, replace, reschedule, keepLastIfActive
     children      true: it waits for children that follow
     in_flow       true: parents are released when the whole flow is stored
     unique        true: a finished job of this id is replaced, any other is no reason to drop this one
Returns: for each job its id, or that of the job which stands for it
Codes: -5 parent missing, -7 the job has another living parent, 0 with `unique`: the id is taken by a job not finished
Events: added, then waiting, delayed or waiting-children; duplicated, deduplicated, removed
]]
local now = tonumber(ARGV[1])
local opened, answers, parents = {}, {}, {}
for at = 2, #ARGV, 10 do
  local number = tonumber(ARGV[at])
  local q = opened[number] or open_queue(KEYS[number])
  opened[number] = q
  local more = ARGV[at + 9] ~= '' and cjson.decode(ARGV[at + 9]) or {}
  local answer = add(q, {
    id = ARGV[at + 1], name = ARGV[at + 2], data = ARGV[at + 3], opts = ARGV[at + 4], timestamp = ARGV[at + 5],
    delay = ARGV[at + 6], priority = ARGV[at + 7], celery = ARGV[at + 8], more = more,
  }, now)
  answers[#answers + 1] = answer
  if more.children then
    parents[#parents + 1] = q.base .. answer
  end
end
for _, key in ipairs(parents) do
  release_parent_if_free(key, now)
end
return answers
