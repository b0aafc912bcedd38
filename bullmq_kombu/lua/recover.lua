--[[
recover: BullMQ's stalled check over several queues. A job seen active without a lock at two checks in a row waits again.
Uses: _queue
KEYS: one "prefix:queue:" for each queue
ARGV: 1 now, ms   2 how often a job may stall   3 interval in ms within which one check is enough, whoever makes it
Returns: {in how many ms the next check of one of them may be made; for each job that waits again: number of its queue, id}
Events: waiting, stalled
]]
local now, allowed = tonumber(ARGV[1]), tonumber(ARGV[2])
local again, moved = tonumber(ARGV[3]), {}

local function is_scheduled(q, id)
  local scheduler = call('HGET', q.base .. id, 'rjk')
  return scheduler
    and (call('EXISTS', q.base .. 'repeat:' .. scheduler) == 1 or call('ZSCORE', q.base .. 'repeat', scheduler))
end

for number, base in ipairs(KEYS) do
  if call('SET', base .. 'stalled-check', now, 'PX', ARGV[3], 'NX') then
    local suspects = call('SMEMBERS', base .. 'stalled')
    local active = call('LRANGE', base .. 'active', 0, -1)
    if #suspects > 0 then
      local q = open_queue(base)
      call('XTRIM', base .. 'events', 'MAXLEN', '~', events_kept(q))
      call('DEL', base .. 'stalled')
      for _, id in ipairs(suspects) do
        local key = base .. id
        if call('EXISTS', key .. ':lock') == 0 and call('LREM', base .. 'active', 1, id) > 0 then
          if call('EXISTS', key) == 1 then
            local stalled = attempt('HINCRBY', key, 'stc', 1)
            if type(stalled) == 'number' and stalled > allowed and not is_scheduled(q, id) then
              call('HSET', key, 'defa', 'job stalled more than allowable limit')
            end
          end
          line_up_first(q, id, priority_of(q, id))
          wake(q)
          emit(q, 'waiting', 'jobId', id, 'prev', 'active')
          emit(q, 'stalled', 'jobId', id)
          moved[#moved + 1] = number
          moved[#moved + 1] = id
        end
      end
      active = call('LRANGE', base .. 'active', 0, -1)
    end
    for from = 1, #active, 5000 do
      call('SADD', base .. 'stalled', unpack(active, from, math.min(from + 4999, #active)))
    end
  else
    again = math.min(again, math.max(call('PTTL', base .. 'stalled-check'), 0))
  end
end
return { again, moved }
