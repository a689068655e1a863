"""What a partition of the buffer in Redis looks like, and the Lua functions that all its scripts share.

A partition is eleven keys with one hash tag, all of them declared by every call: while their slot moves between two
nodes of a cluster, either all are there or the call is refused as a whole. Nothing has a life, so nothing is evicted
but by an ``allkeys-*`` policy, which is refused.

=========  =========================================================================================
meta       how many partitions there are, the highest sequence ever given, bytes, settling records
rec        key → the record without its payload (MessagePack)
pay        key → the payload of a value
fresh      free records that wait for nothing but the coalescing window, by due time
later      free records that back off or settle, by due time
claims     token → when the claim ends
holders    token → since when, and whose
taken      ``token:key`` of the claimed records
dirty      records to be saved, by first_dirty
dead       dead letters, by first_dirty
bad        damaged records, taken out of the way of the others
=========  =========================================================================================

Times are whole microseconds: exact in Lua's doubles until the year 2255. Every reply begins with a word and the
server's time: ``ok``, ``full``, ``late``, ``partitions`` or ``damaged``.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES", "PRELUDE"]

NAMES: Final = (
    "meta", "rec", "pay", "fresh", "later", "claims", "holders", "taken", "dirty", "dead", "bad",
)  # fmt: skip

# ARGV of every script: partitions, fence, now (empty: the server's clock), whether this call was sent before.
# The fence is the server time after which the caller has given up. What arrives later is refused: it would land over a
# newer state that was accepted meanwhile, or claim for nobody.
PRELUDE: Final = """
local META, REC, PAY, FRESH, LATER, CLAIMS, HOLDERS, TAKEN, DIRTY, DEAD, BAD = unpack(KEYS)
local SEQ, STATE, CODEC, FLAGS, SIZE, FIRST, TRIES, DUE = 1, 2, 3, 4, 5, 6, 7, 8
local SUSPECT, SETTLING, GIVEN_UP, TOKEN, ID, ERROR = 9, 10, 11, 12, 13, 14
local VALUE, TOMBSTONE, HELD = 0, 1, 2
local call = redis.call
local TYPES = {'hash', 'hash', 'hash', 'zset', 'zset', 'zset', 'hash', 'zset', 'zset', 'zset', 'zset'}

local clock = call('TIME')
local server = clock[1] * 1000000 + clock[2]
local now = tonumber(ARGV[3]) or server
local again = ARGV[4] == '1'

-- looked at before anything is written: a script that fails half way leaves its half
for i = 1, #KEYS do
  local kind = call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= TYPES[i] then
    return {'damaged', server, KEYS[i], 'is a ' .. kind .. ' and should be a ' .. TYPES[i]}
  end
end
local meta = call('HMGET', META, 'parts', 'last', 'bytes', 'settling')
if meta[1] and meta[1] ~= ARGV[1] then return {'partitions', server, meta[1]} end
local last, bytes, settling = tonumber(meta[2] or 0), tonumber(meta[3] or 0), tonumber(meta[4] or 0)
if not (last and bytes and settling) then return {'damaged', server, META, 'holds no numbers'} end
if ARGV[2] ~= '' and server > tonumber(ARGV[2]) then return {'late', server} end

local function text(number) return string.format('%.0f', number) end

-- Some writes are refused at maxmemory, but only as a script's first one. What empties the buffer must work then.
local function begin() call('ZREM', BAD, '') end

local was = {}  -- where the records stand that are being changed

local function facts(key, r)
  local index, member, score = LATER, key, r[DUE]
  if r[GIVEN_UP] == 1 then index, score = DEAD, r[FIRST]
  elseif r[TOKEN] ~= '' then index, member, score = TAKEN, r[TOKEN] .. ':' .. key, 0
  elseif r[TRIES] == 0 and r[SETTLING] == 0 then index = FRESH end
  local real = r[STATE] ~= HELD
  return {index, member, score, real and r[GIVEN_UP] == 0 and r[FIRST], real and r[SETTLING] or 0, r[SIZE], r[TOKEN]}
end

local NUMBERS = 11

-- the record; nil where there is none, false where it is damaged
local function load(key)
  local packed = call('HGET', REC, key)
  if not packed then return nil end
  local fine, r = pcall(cmsgpack.unpack, packed)
  if not fine or type(r) ~= 'table' or #r ~= 14 then return false end
  for i = 1, NUMBERS do if type(r[i]) ~= 'number' then return false end end
  if type(r[TOKEN]) ~= 'string' or type(r[ID]) ~= 'string' then return false end
  if r[ERROR] ~= false and type(r[ERROR]) ~= 'string' then return false end
  if r[STATE] == VALUE and call('HEXISTS', PAY, key) == 0 then return false end
  was[key] = facts(key, r)
  return r
end

local function damaged(key) return {'damaged', server, REC, 'has a damaged record of the key ' .. key} end

local function keys_of(token)
  local keys = call('ZRANGEBYLEX', TAKEN, '[' .. token .. ':', '(' .. token .. ';')
  for i = 1, #keys do keys[i] = keys[i]:sub(#token + 2) end
  return keys
end

local function end_claim(token)
  if call('ZLEXCOUNT', TAKEN, '[' .. token .. ':', '(' .. token .. ';') == 0 then
    call('ZREM', CLAIMS, token)
    call('HDEL', HOLDERS, token)
  end
end

local function start_claim(token, life, holder)
  call('ZADD', CLAIMS, text(now + life), token)
  call('HSET', HOLDERS, token, text(now) .. ' ' .. holder)
end

local function holder_of(token)
  local since, who = (call('HGET', HOLDERS, token) or ''):match('^(%d+) (.*)$')
  return tonumber(since or 0), who or ''
end

-- the record as it stands from now on, or nil: it is gone. The first write is one that maxmemory refuses.
local function keep(key, r)
  local old, new = was[key], r and facts(key, r)
  if r then call('HSET', REC, key, cmsgpack.pack(r)) else call('HDEL', REC, key) call('HDEL', PAY, key) end
  if new and not (old and old[1] == new[1] and old[2] == new[2] and old[3] == new[3]) then
    call('ZADD', new[1], text(new[3]), new[2])
  end
  if old and not (new and old[1] == new[1] and old[2] == new[2]) then
    call('ZREM', old[1], old[2])
    if old[1] == TAKEN then end_claim(old[7]) end
  end
  if new and new[4] then
    if not (old and old[4] == new[4]) then call('ZADD', DIRTY, text(new[4]), key) end
  elseif old and old[4] then
    call('ZREM', DIRTY, key)
  end
  settling = settling + (new and new[5] or 0) - (old and old[5] or 0)
  bytes = bytes + (new and new[6] or 0) - (old and old[6] or 0)
  was[key] = new or nil
end

local function finish()
  call('HSET', META, 'parts', ARGV[1], 'last', text(last), 'bytes', text(bytes), 'settling', text(settling))
end

local shelved = {}
local function shelve(key, member)
  begin()
  call('ZADD', BAD, text(now), key)
  call('ZREM', FRESH, key)
  call('ZREM', LATER, key)
  if member then call('ZREM', TAKEN, member) end
  shelved[#shelved + 1] = key
end

-- what was damaged and is mended, or gone by hand; the counts are made anew
local function mend()
  local bad = call('ZRANGE', BAD, 0, 99)
  local changed = false
  for _, key in ipairs(bad) do
    local r = load(key)
    if r ~= false then
      begin()
      changed = true
      call('ZREM', BAD, key)
      if r then was[key] = nil keep(key, r)
      else
        for _, index in ipairs({DIRTY, DEAD}) do call('ZREM', index, key) end
        call('HDEL', PAY, key)
      end
    end
  end
  if not changed then return bad[1] end
  settling, bytes = 0, 0
  for _, key in ipairs(call('HKEYS', REC)) do
    local r = load(key)
    if r then settling, bytes = settling + was[key][5], bytes + r[SIZE] end
  end
  finish()
  return call('ZRANGE', BAD, 0, 0)[1]
end

-- a record as it is told
local function show(key, r)
  local deadline, holder = 0, false
  if r[TOKEN] ~= '' then
    deadline = tonumber(call('ZSCORE', CLAIMS, r[TOKEN]) or 0)
    local _, who = holder_of(r[TOKEN])
    holder = who
  end
  local payload = r[STATE] == VALUE and call('HGET', PAY, key)
  return {key, r[ID], r[STATE], payload, r[CODEC], r[FLAGS], r[SEQ], r[FIRST], r[TRIES], r[ERROR], r[DUE],
    r[TOKEN] ~= '' and r[TOKEN], deadline, holder, r[SUSPECT], r[SETTLING], r[GIVEN_UP]}
end

-- sequences grow whatever the clock does; a server that lost everything is ahead of the old ones by its clock
local function next_sequence()
  last = math.max(last + 1, now)
  return last
end
"""
