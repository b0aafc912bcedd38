--[[
wait_children: the job in hand waits for its children, and is taken again when none of them is pending.
Uses: _queue _parents _add _promise _finish
KEYS: "prefix:queue:"
ARGV: 1 now, ms   2 id   3 token
Returns: 0, or 1 no child is pending and nothing was changed, -1 no such job, -2 not locked, -3 not active, -6 locked by another
  delivery, -9 a child has failed whose failure fails this job
Events: waiting-children
]]
local q, now, id = open_queue(KEYS[1]), tonumber(ARGV[1]), ARGV[2]
local key = q.base .. id
if call('EXISTS', key) == 0 then
  return -1
elseif call('EXISTS', key .. ':unsuccessful') == 1 then
  return -9
elseif call('EXISTS', key .. ':dependencies') == 0 then
  return 1
end
local code = leave_active(q, id, ARGV[3])
if code == 0 then
  settle(q)
  take_back_promise(key)
  call('ZADD', q.base .. 'waiting-children', now, id)
  emit(q, 'waiting-children', 'jobId', id, 'prev', 'active')
  wake(q)
end
return code
