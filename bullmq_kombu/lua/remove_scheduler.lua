--[[
remove_scheduler: no further iteration is made; the one that is delayed goes, one that waits or runs does not.
Uses: _queue _parents _add _schedule
KEYS: "prefix:queue:"
ARGV: 1 scheduler id
Returns: 1, or 0 where there is no such scheduler
Events: removed
]]
local q, scheduler = open_queue(KEYS[1]), ARGV[1]
local current = call('ZSCORE', q.base .. 'repeat', scheduler)
if current then
  local id = iteration_id(scheduler, tonumber(current))
  if call('ZREM', q.base .. 'delayed', id) == 1 then
    delete_job_keys(q.base .. id)
    emit(q, 'removed', 'jobId', id, 'prev', 'delayed')
  end
end
call('DEL', q.base .. 'repeat:' .. scheduler)
return call('ZREM', q.base .. 'repeat', scheduler)
