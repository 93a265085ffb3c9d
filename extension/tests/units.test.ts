import { describe, expect, it } from 'vitest';

import type { IForm } from '../src/making/form';
import { readForm } from '../src/making/form';
import { ago, freeName, labelTrouble, nameTrouble, percent, size } from '../src/units';

// The same values as in tests/unit for vmlab/render/units.py: panel and notebook say the same.
describe('units', () => {
  it('are binary and short', () => {
    expect([0, 1023, 4096, 768 << 20, 1.5 * 2 ** 30, null].map(size)).toEqual([
      '0 B',
      '1023 B',
      '4.0 KiB',
      '768 MiB',
      '1.5 GiB',
      '–'
    ]);
    expect([0, 0.4, 12.3, 200].map(percent)).toEqual(['0 %', '0.4 %', '12 %', '200 %']);
  });

  it('of time are relative', () => {
    const now = new Date('2026-01-10T00:00:00Z');
    const before = (seconds: number) => ago(new Date(now.getTime() - seconds * 1000), now);
    expect([1, 12, 300, 7200, 86400, 400000].map(before)).toEqual([
      'just now',
      '12 s ago',
      '5 min ago',
      '2 h ago',
      '1 day ago',
      '4 days ago'
    ]);
  });
});

describe('names', () => {
  it('lets a name that is only shown hold any letters and blanks', () => {
    expect(['clean', 'vor dem Umbau', 'Übung (1), 第一課', 'x'.repeat(80)].map(labelTrouble)).toEqual([
      null,
      null,
      null,
      null
    ]);
    for (const bad of ['', ' a', 'a ', '-a', 'a@b', "a'b", 'a"b', '{a}', '$a', 'a\\b', 'x'.repeat(81)]) {
      expect(labelTrouble(bad)).not.toBeNull();
    }
  });

  it('are those that the server takes', () => {
    expect(['web', '2.b_c-d', 'x'.repeat(40)].map(nameTrouble)).toEqual([null, null, null]);
    for (const bad of ['', '-a', 'a b', 'a/b', 'x'.repeat(41), 'ä']) {
      expect(nameTrouble(bad)).not.toBeNull();
    }
  });

  it('are proposed free', () => {
    expect(freeName('tiny', [])).toBe('tiny');
    expect(freeName('tiny', ['tiny', 'tiny-2'])).toBe('tiny-3');
  });
});

describe('the form of a new machine', () => {
  const empty: IForm = {
    image: 'tiny',
    name: '',
    memory: '',
    vcpus: '',
    wayOut: '',
    disk: '',
    forwards: '',
    firmware: '',
    sound: '',
    kernelArgs: '',
    start: true
  };

  it('asks for nothing but what was said', () => {
    expect(readForm(empty)).toEqual({ image: 'tiny' });
    expect(
      readForm({
        ...empty,
        name: 'web',
        memory: '128',
        disk: '1.5',
        forwards: '8080:80, 2222:22',
        start: false
      })
    ).toEqual({
      image: 'tiny',
      name: 'web',
      memory: 128,
      disk: 1610612736,
      forwards: [
        [8080, 80],
        [2222, 22]
      ],
      start: false
    });
  });

  it('says what cannot be', () => {
    expect(readForm({ ...empty, name: 'a b' })).toContain('letters');
    expect(readForm({ ...empty, forwards: '80' })).toContain('“80”');
    expect(readForm({ ...empty, forwards: '99999:80' })).toContain('99999');
  });
});
